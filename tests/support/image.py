"""A Dockerfile carried out without a daemon: each stage is a directory that its RUN lines see as `/`.

The lines run as a user without rights. What they find there besides what was copied is this machine's `/usr`, `/etc`
and Python, read-only, in place of the base image.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]
from dockerfile_parse.util import WordSplitter, extract_key_values  # type: ignore[import-untyped]

from tests.support.shell import ROOT

_NOBODY: Final = 65534
_AS_ROOT = os.geteuid() == 0
_OF_BASE_IMAGE = ("usr", "etc", "bin", "sbin", "lib", "lib64")
_PATH = "/python:/usr/local/bin:/usr/bin:/bin"


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile with its value, comments left out."""
    for line in DockerfileParser(fileobj=BytesIO(dockerfile.read_bytes())).structure:
        if line["instruction"] != "COMMENT":
            yield line["instruction"], line["value"]


def refusal() -> str:
    """Why there can be no such directories here, or ""."""
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        return "`unshare` or `setpriv` is not installed: apt-get install util-linux"
    done = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    return f"namespaces are not allowed here: {done.stderr.strip()}" if done.returncode else ""


@dataclass(slots=True)
class Stage:
    """One stage as it is so far."""

    root: Path
    base: str
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    directory: str = "/"
    user: str = ""
    entrypoint: list[str] = field(default_factory=list[str])

    def command(self, *arguments: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """A command that builds: as nobody, to whom the whole stage belongs."""
        return self._run(arguments, f"{_NOBODY}:{_NOBODY}", {**self.environment, **(environment or {})}, None)

    def container(self, *arguments: str, empty: Collection[str] = ()) -> list[str]:
        """A command that runs `arguments` as the stage's user, with a root that cannot be written.

        Args:
            empty: directories that can be, and have nothing in them.
        """
        return self._run(arguments, self.user or "0:0", self.environment, empty)

    def _run(
        self, arguments: Sequence[str], user: str, variables: Mapping[str, str], empty: Collection[str] | None
    ) -> list[str]:
        """A command that runs `arguments` in it, as process 1 of a namespace that ends with it."""
        return [
            *_unshare(), "sh", "-ec", self._script(user, empty), "sh",
            *(f"{name}={value}" for name, value in variables.items()), *arguments,
        ]  # fmt: skip

    def _script(self, user: str, empty: Collection[str] | None) -> str:
        """Shell text that makes `root` the root directory and runs its arguments there."""
        root = shlex.quote(str(self.root))
        lines = ["PATH=$PATH:/usr/sbin:/sbin", f"mount --bind {root} {root}"]
        lines.append(f"mkdir -p {root}/proc {root}/dev {root}/python")
        for name in [*_OF_BASE_IMAGE, *([] if sys.base_prefix == "/usr" else [sys.base_prefix.lstrip("/")])]:
            there = Path("/", name)
            if there.is_symlink():
                lines.append(f"ln -sfn {shlex.quote(os.readlink(there))} {root}/{name}")
            elif there.is_dir():
                place = f"{root}/{shlex.quote(name)}"
                lines += [f"mkdir -p {place}", f"mount --rbind /{shlex.quote(name)} {place}"]
                lines.append(f"mount -o remount,bind,ro {place}")
        lines.append(f"ln -sfn {shlex.quote(os.path.realpath(sys.executable))} {root}/python/python")
        for path in ("/tmp",) if empty is None else empty:
            lines.append(f"mkdir -p {root}{path}; mount -t tmpfs tmpfs {root}{path} -o mode=1777")
        lines += [f"mount --rbind /dev {root}/dev", f"mount -t proc proc {root}/proc"]
        if empty is not None:
            lines.append(f"mount -o remount,bind,ro {root}")
        uid, _, gid = user.partition(":")
        become = "setpriv --no-new-privs" + (f" --reuid={uid} --regid={gid} --clear-groups" if _AS_ROOT else "")
        inside = shlex.quote(f'cd {shlex.quote(self.directory)} && exec env -i "$@"')
        lines.append(f'exec chroot {root} {become} sh -ec {inside} sh "$@"')
        return "\n".join(lines)


def build(dockerfile: Path, directory: Path) -> Stage:
    """Carry it out with the checkout as context; give the last stage. What is left out is printed.

    Args:
        directory: a new one, which other users can enter; gets one directory per stage.

    Raises:
        AssertionError: a line failed, or is none that this knows.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for instruction, raw in instructions(dockerfile):
        known = {**arguments, **(stage.environment if stage else {})}
        if instruction == "ARG" and stage is None:
            arguments.update(extract_key_values(_replaced, {}, {}, raw))
        elif instruction == "FROM":
            base, _, name = WordSplitter(raw, args=arguments).dequote().partition(" AS ")
            stage = stages[name] = Stage(directory / name, base)
            _make(stage.root)
        else:
            assert stage is not None
            _carry_out(stage, stages, instruction, raw, known)
    assert stage is not None
    return stage


def _carry_out(stage: Stage, stages: Mapping[str, Stage], instruction: str, raw: str, known: dict[str, str]) -> None:
    value: str = WordSplitter(raw, args=known).dequote() if instruction in ("WORKDIR", "COPY", "USER") else raw
    match instruction:
        case "RUN" if "apt-get" in raw:
            print(f"left out, as only root can do it: RUN {raw}")
        case "RUN":
            environment = {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
            command = stage.command("/bin/sh", "-c", raw, environment={"HOME": "/tmp", **environment})
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, f"RUN {raw}\n{done.stdout}{done.stderr}"
        case "WORKDIR":
            stage.directory = value
            _make(stage.root / value.lstrip("/"))
        case "COPY":
            _copy(stage, stages, value.split())
        case "ENV":
            stage.environment.update(extract_key_values(_replaced, {}, known, raw))
        case "USER":
            stage.user = value
        case "ENTRYPOINT":
            stage.entrypoint = json.loads(raw)
        case _:
            assert instruction == "EXPOSE", f"not known here: {instruction}"


def _replaced(text: str, arguments: Mapping[str, str], environment: Mapping[str, str]) -> Any:
    return WordSplitter(text, args=arguments, env=environment)


def _copy(stage: Stage, stages: Mapping[str, Stage], words: list[str]) -> None:
    """Copy files, or the insides of directories, as COPY does; they belong to whom the lines run as."""
    source = ROOT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *names, target = words
    there = stage.root / os.path.join(stage.directory, target).lstrip("/")
    for name in names:
        found = source / name.lstrip("/")
        if found.is_dir():
            ignored = shutil.ignore_patterns(*_ignored()) if source == ROOT else None
            shutil.copytree(found, there, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(found, there / found.name if target.endswith("/") else there)
    _make(there)
    _give_away(stage.root)


def _ignored() -> list[str]:
    """The names that the context is without, wherever they are."""
    lines = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert all(pattern.startswith("**/") for pattern in patterns), patterns
    return [pattern.removeprefix("**/") for pattern in patterns]


def _make(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if _AS_ROOT:
        os.chown(directory, _NOBODY, _NOBODY)


def _give_away(directory: Path) -> None:
    if _AS_ROOT:
        subprocess.run(["chown", "-R", "--no-dereference", f"{_NOBODY}:{_NOBODY}", str(directory)], check=True)


def _unshare() -> list[str]:
    namespaces = ["--mount", "--pid", "--fork", "--kill-child"]
    return ["unshare", *namespaces, *([] if _AS_ROOT else ["--map-root-user"])]
