"""The sockets that the service listens on, bound before anything else happens.

Owns binding, the mode and group of a Unix socket's file and its removal. A second instance fails here, before it could
touch the first one's state.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

from firewall.errors import Conflict, FirewallError, errno_name
from firewall.lockout import Listener
from firewall.settings import parse_listen

log = structlog.get_logger(__name__)

BACKLOG = 256
SOCKET_MODE = 0o660
HINT = "is another ebpf-fw running? `systemctl status ebpf-fw`; other addresses: api.listen in the config"


@contextmanager
def listening(addresses: Sequence[str], group: int | None = None) -> Iterator[list[socket.socket]]:
    """Sockets that listen on `addresses` (settings' api.listen). `group`: that a Unix socket's file is to belong to.
    Raises Conflict if one cannot."""
    with ExitStack() as stack:
        yield [stack.enter_context(_listening(address, group)) for address in addresses]


@contextmanager
def _listening(address: str, group: int | None) -> Iterator[socket.socket]:
    where = parse_listen(address)
    try:
        listener = _bind_unix(where, group) if isinstance(where, Path) else _bind_tcp(*where)
    except OSError as error:
        reason = errno_name(error.errno) if error.errno else str(error)
        raise _cannot(address, reason) from error
    bound = where.stat() if isinstance(where, Path) else None
    try:
        yield listener
    finally:
        listener.close()
        if isinstance(where, Path) and bound is not None:
            _remove_if_same(where, bound)


def name_of(listener: socket.socket) -> str:
    """As in api.listen, with the port that was chosen for 0."""
    bound = listener.getsockname()
    if isinstance(bound, str):
        return f"unix:{bound}"
    host, port = bound[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def tcp_addresses(listeners: Sequence[socket.socket]) -> list[Listener]:
    """Those that are reached over TCP."""
    found = []
    for each in listeners:
        if each.family in (socket.AF_INET, socket.AF_INET6):
            host, port = each.getsockname()[:2]
            address = ipaddress.ip_address(host)
            found.append(Listener(address.version, int(address), port))
    return found


def _cannot(address: str, reason: str) -> FirewallError:
    return Conflict(f"cannot listen on {address}: {reason}", HINT, code="cannot_listen")


def _bind_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _bind_unix(path: Path, group: int | None) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        _give_to(group, path)
        path.chmod(SOCKET_MODE)  # before listen(): nobody can connect until then
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _give_to(group: int | None, path: Path) -> None:
    """Under the unit it is the group's from the start, and the service may not change owners."""
    if group is None or path.stat().st_gid == group:
        return
    try:
        os.chown(path, -1, group)
    except PermissionError as error:
        hint = "run the service with that group (Group= in its unit)"
        log.warning("the group cannot use the socket", path=str(path), error=error.strerror, hint=hint)


def _remove_stale(path: Path) -> None:
    """Removes a socket that a killed service left: one on which nobody answers."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _cannot(f"unix:{path}", "there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise _cannot(f"unix:{path}", "another process answers there")


def _remove_if_same(path: Path, bound: os.stat_result) -> None:
    """Not the socket of another instance that took the path since."""
    with suppress(FileNotFoundError):
        now = path.lstat()
        if (now.st_dev, now.st_ino) == (bound.st_dev, bound.st_ino):
            path.unlink()
