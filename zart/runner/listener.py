"""The socket that HTTP is served on, bound before anything is started."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from zart.errors import InvalidArgument, shown

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 9464
MAX_PORT: Final = 65_535
_BACKLOG: Final = 128


def listen(host: str, port: int, *, host_option: str, port_option: str) -> socket.socket:
    """Listen on an address of this host; what connects before somebody serves it waits.

    Args:
        host: a name or an address; of several addresses the first is taken. "::" stands for those of IPv4 too.
        port: 0 for a free one.
        host_option, port_option: what these are called, for errors.

    Raises:
        InvalidArgument: it cannot be had; the line says why and what to do.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        dual = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        made = socket.create_server(address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(_refusal(host, port, error, host_option, port_option)) from error
    made.setblocking(False)
    return made


def check_port(name: str, port: object) -> None:
    """Refuse what is no port.

    Raises:
        InvalidArgument: it is none.
    """
    if type(port) is not int or not 0 <= port <= MAX_PORT:
        raise InvalidArgument(f"{name} must be a whole number from 0 to {MAX_PORT:,}, got {shown(port)}")


def url_of(listener: socket.socket) -> str:
    """Where it listens, as `http://127.0.0.1:9464`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _refusal(host: str, port: int, error: OSError | UnicodeError, host_option: str, port_option: str) -> str:
    match error:
        case OSError(errno=errno.EADDRINUSE):
            return f"{port_option} {port} is in use on {host}; choose another one, or 0 for any that is free"
        case OSError(errno=errno.EACCES):
            return f"{port_option} {port} is for privileged processes; choose one from 1024 on"
        case socket.gaierror() | UnicodeError() | OSError(errno=errno.EADDRNOTAVAIL):
            return f"{host_option} {host!r} is no address of this host; choose one, as 127.0.0.1, or 0.0.0.0 for all"
        case _:
            what = os.strerror(error.errno) if error.errno else str(error)
            return f"{host_option} {host!r} and {port_option} {port} cannot be listened on: {what}"
