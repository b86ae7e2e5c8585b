"""SQL as files: one statement or function each, loaded once, with the schema's name put in.

`:schema.` before every table and function is the only thing that is replaced; values travel as $1..$n.
"""

from __future__ import annotations

import functools
from importlib import resources

from zart.errors import InvalidArgument, shown

_FILES = resources.files("zart.store")
_LONGEST_IDENTIFIER = 63


@functools.cache
def statement(name: str, schema: str) -> str:
    """The text of store/sql/NAME.sql for this schema.

    Raises:
        InvalidArgument: the schema's name cannot be used.
    """
    return in_schema(_FILES.joinpath("sql", f"{name}.sql").read_text("utf-8"), schema)


def in_schema(text: str, schema: str) -> str:
    """SQL text with `:schema.` replaced by the quoted name of the schema."""
    return text.replace(":schema.", f"{quoted(schema)}.")


def quoted(schema: str) -> str:
    """The schema's name as an SQL identifier.

    Raises:
        InvalidArgument: it is empty, longer than 63 bytes, or has a character that cannot stand in a function's body.
    """
    usable = schema.isprintable() and not set("$:") & set(schema)
    if not usable or not 1 <= len(schema.encode()) <= _LONGEST_IDENTIFIER:
        raise InvalidArgument(
            f"schema must be a name of 1 to {_LONGEST_IDENTIFIER} bytes, printable, without '$' and ':',"
            f" got {shown(schema)}"
        )
    return '"' + schema.replace('"', '""') + '"'
