"""Who is at the other end of a connection, as far as the kernel and TLS vouch for it.

Owns reading that from the socket, once a connection: the process behind a Unix socket with all its groups, or the names
in the certificate of a TLS client. What these may do is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PEER = "ebpf_fw.peer"  # of the scope
_SO_PEERGROUPS = 59  # <asm-generic/socket.h>, Linux 4.13
_MOST_BYTES = 1024  # that Python reads of a socket option: 256 groups
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Process:
    """The other end of a Unix socket, as it was when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Peer:
    """`names`: of its certificate, those that were verified; the common name is the last."""

    process: Process | None = None
    names: tuple[str, ...] = ()


def peer_of(transport: asyncio.Transport) -> Peer:
    opened = transport.get_extra_info("socket")
    if opened is not None and opened.family == socket.AF_UNIX:
        return Peer(_process(opened))
    return Peer(names=tuple(certificate_names(transport.get_extra_info("peercert") or {})))


def _process(opened: socket.socket) -> Process | None:
    try:
        pid, uid, gid = _UCRED.unpack(opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:
        return None
    try:
        groups = opened.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES)
    except OSError:  # more groups than fit: those besides its own are not believed
        groups = b""
    found = struct.unpack(f"{len(groups) // 4}I", groups)
    return Process(pid, uid, frozenset((gid, *found)))


def certificate_names(certificate: Mapping[str, Any]) -> Iterator[str]:
    """Of what ssl.SSLObject.getpeercert() answers."""
    yield from (str(name) for _, name in certificate.get("subjectAltName", ()))
    for part in certificate.get("subject", ()):
        yield from (str(value) for key, value in part if key == "commonName")
