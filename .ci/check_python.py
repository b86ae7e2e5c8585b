"""Whether this Python can build zart; if not, one line that says what is missing. Runs on every Python 3."""

import os
import shutil
import sys
import sysconfig


def missing():
    """What is missing, as a sentence, or ''."""
    version = "%d.%d" % sys.version_info[:2]
    if sys.version_info < (3, 11):
        return "Python 3.11 or later is needed, this is %s: make PYTHON=python3.11 ..." % version
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "Python's venv is missing: apt install python%s-venv" % version
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "Python's headers are missing: apt install python%s-dev, or dnf install python3-devel" % version
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if not shutil.which(compiler):
        return "the C compiler %s is missing: apt install gcc libc6-dev, or dnf install gcc" % compiler
    return ""


line = missing()
if line:
    sys.exit("zart cannot be built: " + line)
