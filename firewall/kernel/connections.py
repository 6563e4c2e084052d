"""Live TCP connections of this network namespace (sock_diag), which of them are SSH sessions, and what carries them.

Owns the reading. Nothing is kept but, for some seconds, the ports that SSH listens on. It judges nothing.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from firewall.address import BITS
from firewall.datapath import Connection
from firewall.errors import kernel_refused

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _RTM_GETROUTE = 20, 26
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ESTABLISHED, _LISTEN = 1 << 1, 1 << 10  # sets of states (include/net/tcp_states.h)
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
# struct inet_diag_req_v2: family, protocol, extensions, states; struct inet_diag_sockid: ports, addresses, interface.
_REQUEST = struct.Struct("=BBBxI")
_SOCKET_ID = struct.Struct("!HH16s16sI8x")
# struct inet_diag_msg: family, state, timer, retransmits; the socket's id; expiry, queues, uid, inode.
_SOCKET = struct.Struct("!BBxxHH16s16s")
_SOCKET_SIZE, _INODE_AT = 72, 68
_ROUTE_REQUEST = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_RTA_DST, _RTA_OIF = 1, 4
_BUFFER = 1 << 16
_MAPPED = bytes(10) + b"\xff\xff"  # IPv4 in IPv6 (RFC 4291, 2.5.5.2)
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

SSH_PORT = 22
SSH_PROCESSES = frozenset(("sshd", "sshd-session"))
_SSH_CONFIG = Path("/etc/ssh")
_SSH_PORT_LINE = re.compile(r"^\s*Port[\s=]+\"?(\d{1,5})\"?\s*$", re.MULTILINE | re.IGNORECASE)
_PORTS_KEPT_S = 10.0


class Connections:
    """Made in the namespace whose sockets it reads. `clock`: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ports: frozenset[int] = frozenset()
        self._ports_until = float("-inf")

    def all(self) -> list[Connection]:
        """Every established connection. Raises KernelRefused."""
        ssh = self.ssh_ports()
        return [each._replace(is_ssh=each.local_port in ssh) for each in _sockets(_ESTABLISHED)]

    def ssh_sessions(self) -> list[Connection]:
        """Those of this host's SSH servers alone: cheap also where there are very many others."""
        found = [each for port in sorted(self.ssh_ports()) for each in _sockets(_ESTABLISHED, port)]
        return [each._replace(is_ssh=True) for each in found]

    def ssh_ports(self) -> frozenset[int]:
        """22, what sshd's configuration says, and what processes named sshd listen on, as far as they can be seen."""
        if self._clock() >= self._ports_until:
            self._ports = frozenset((SSH_PORT, *_configured_ports(), *_listening_ports()))
            self._ports_until = self._clock() + _PORTS_KEPT_S
        return self._ports


def _sockets(states: int, local_port: int = 0) -> list[Connection]:
    return [each for each, _ in _sockets_and_inodes(states, local_port)]


def _sockets_and_inodes(states: int, local_port: int = 0) -> list[tuple[Connection, int]]:
    found = []
    for family in _FAMILIES.values():
        asked = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states)
        asked += _SOCKET_ID.pack(local_port, 0, bytes(16), bytes(16), 0)
        for message in _asked(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP, asked):
            if len(message) >= _SOCKET_SIZE:
                inode = struct.unpack_from("=I", message, _INODE_AT)[0]
                found.append((_connection(message), inode))
    return found


def _connection(message: bytes) -> Connection:
    family, _, local_port, remote_port, local, remote = _SOCKET.unpack_from(message)
    version = 4 if family == socket.AF_INET else 6
    if version == 4:
        local, remote = local[:4], remote[:4]
    elif local.startswith(_MAPPED) or remote.startswith(_MAPPED):
        version, local, remote = 4, local[12:], remote[12:]
    addresses = int.from_bytes(local, "big"), int.from_bytes(remote, "big")
    return Connection(version, addresses[0], local_port, addresses[1], remote_port)


def route_to(version: int, address: int) -> int | None:
    """Index of the interface that packets to an address leave by; None where there is no route."""
    packed = address.to_bytes(BITS[version] // 8, "big")
    asked = _ROUTE_REQUEST.pack(_FAMILIES[version], BITS[version], 0, 0, 0, 0, 0, 0, 0)
    asked += struct.pack("=HH", 4 + len(packed), _RTA_DST) + packed
    try:
        answers = list(_asked(socket.NETLINK_ROUTE, _RTM_GETROUTE, _NLM_F_REQUEST, asked))
    except OSError:
        return None
    return next((_outgoing(each) for each in answers), None)


def _outgoing(message: bytes) -> int | None:
    at = _ROUTE_REQUEST.size
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _RTA_OIF:
            return int(struct.unpack_from("=I", message, at + 4)[0])
        at += max(4, -(-length // 4) * 4)
    return None


def _asked(protocol: int, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """What the kernel answers, a message at a time without its header. Raises KernelRefused for a dump, OSError for
    a single question."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as netlink:
        netlink.settimeout(5)
        netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        is_dump = flags == _NLM_F_DUMP
        while True:
            datagram, at = netlink.recv(_BUFFER), 0
            while at + _HEADER.size <= len(datagram):
                length, kind, *_ = _HEADER.unpack_from(datagram, at)
                content = datagram[at + _HEADER.size : at + length]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", content)[0]
                    if is_dump:
                        raise kernel_refused("reading the TCP connections", number)
                    raise OSError(number, "netlink")
                yield content
                at += max(_HEADER.size, -(-length // 4) * 4)
            if not is_dump:
                return


# -- where SSH listens


def _configured_ports() -> set[int]:
    """The service may see no process of others; it sees this."""
    found = set()
    with suppress(OSError):
        for path in (_SSH_CONFIG / "sshd_config", *sorted((_SSH_CONFIG / "sshd_config.d").glob("*.conf"))):
            with suppress(OSError):
                found |= {int(port) for port in _SSH_PORT_LINE.findall(path.read_text(errors="replace"))}
    return {port for port in found if 0 < port < 1 << 16}


def _listening_ports() -> set[int]:
    ours = _sockets_of(SSH_PROCESSES)
    if not ours:
        return set()
    return {each.local_port for each, inode in _sockets_and_inodes(_LISTEN) if inode in ours}


def _sockets_of(names: Collection[str]) -> set[int]:
    """Inodes of the sockets that processes of these names hold, of those that can be seen."""
    inodes: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or we may not
            if (process / "comm").read_text().strip() in names:
                targets = [each.readlink().name for each in (process / "fd").iterdir()]
                inodes |= {int(name[8:-1]) for name in targets if name.startswith("socket:[")}
    return inodes
