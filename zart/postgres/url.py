"""What a database URL says: which server, which database, which files; and how that is told without the password."""

from __future__ import annotations

import os
import re
import urllib.parse

from zart.errors import DatabaseUnreachable

URL_SHAPE = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_FILE_OPTIONS = ("sslrootcert", "sslcert", "sslkey", "sslcrl")

# Of a database's URL all up to the last "@", as what is not escaped in a password may look like anything. Then the user
# and password of any URL, and what is said to be a password. All is bounded: a line of any length takes time by its
# length only.
_SECRETS = re.compile(
    r"""(?i)
    (?P<database>(?<![a-z0-9+.-])postgres(?:ql)?(?:\+\w{1,30})?://)(?!USER:PASSWORD@)[^\n]{0,1000}@
    | (?P<url>(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}://)(?!USER:PASSWORD@)[^\s/:@]{0,500}:[^\s/@]{0,500}@
    | (?P<option>password(?:=|['"]:\s?))(?:'[^'\n]*'|"[^"\n]*"|[^\s&'",]+)
    """,
    re.VERBOSE,
)


def describe(dsn: str) -> str:
    """Which database a URL names, for messages: `database 'app' at db.example.com:5432`, without user or options.

    Raises:
        DatabaseUnreachable: it is no PostgreSQL URL. No part of it is quoted, since any part may be the password.
    """
    parts = _parse(dsn)
    if parts is None:
        raise DatabaseUnreachable(
            f"the database URL cannot be read; write it as {URL_SHAPE}"
            " and percent-encode special characters in the password (@ is %40, / is %2F, # is %23)"
        )
    options = dict(urllib.parse.parse_qsl(parts.query))
    host = parts.netloc.rpartition("@")[2] or options.get("host") or os.environ.get("PGHOST") or "this machine"
    database = parts.path[1:] or options.get("dbname") or options.get("database")
    name = f"database {urllib.parse.unquote(database)!r}" if database else "the database"
    return f"{name} at {urllib.parse.unquote(host)}"


def hosts_of(dsn: str) -> list[tuple[str, int | None]]:
    """The hosts of a URL that names several, with their ports, in its order; else nothing."""
    parts = urllib.parse.urlsplit(dsn)
    options = dict(urllib.parse.parse_qsl(parts.query))
    named = parts.netloc.rpartition("@")[2] or options.get("host") or os.environ.get("PGHOST", "")
    ports = (options.get("port") or os.environ.get("PGPORT", "")).split(",")
    found: list[tuple[str, int | None]] = []
    names = named.split(",") if "," in named else []
    if len(ports) not in (1, len(names)):
        return []  # asyncpg says what is wrong
    for index, one in enumerate(names):
        host, _, port = one.rpartition(":") if ":" in one.rpartition("]")[2] else (one, "", "")
        port = port or ports[index if len(ports) > 1 else 0]
        found.append((urllib.parse.unquote(host).strip("[]"), int(port) if port else None))
    return found


def missing_files(dsn: str) -> list[str]:
    """The options of a URL that name a file which does not exist."""
    options = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(dsn).query))
    return [name for name in _FILE_OPTIONS if name in options and not os.path.exists(options[name])]


def redacted(text: str) -> str:
    """A text of others' making, without the passwords of URLs and of connection options that may be in it."""
    if "://" not in text and "assword" not in text and "ASSWORD" not in text:
        return text
    once = _SECRETS.sub(_without_secret, text)
    return _SECRETS.sub(_without_secret, once)  # the options of a URL come after its user


def _without_secret(found: re.Match[str]) -> str:
    start = found["database"] or found["url"]
    return f"{start}***@" if start else f"{found['option']}***"


def _parse(dsn: str) -> urllib.parse.SplitResult | None:
    """The parts of a URL in which every part is what it seems to be, else None.

    An unescaped character in a password moves its rest into the host, the database or the options, and from
    there into messages: such a URL is not one.
    """
    if not dsn.startswith(("postgresql://", "postgres://")) or not dsn.isprintable():
        return None
    try:
        parts = urllib.parse.urlsplit(dsn)
        urllib.parse.parse_qs(parts.query, strict_parsing=bool(parts.query))
        hosts = parts.netloc.rpartition("@")[2].split(",")
        ports = [host.rpartition(":")[2] for host in hosts if ":" in host.rpartition("]")[2]]
    except ValueError:
        return None
    astray = parts.netloc.count("@") > 1 or "@" in parts.path or "@" in parts.query or "#" in dsn
    wrong_port = any(not port.isdecimal() or int(port) > 65_535 for port in ports)
    return None if astray or wrong_port else parts
