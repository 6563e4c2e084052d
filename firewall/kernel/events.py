"""Waiting until something happens to interfaces, qdiscs or filters of this network namespace (rtnetlink).

Owns a socket that only listens and the way to wake whoever waits. It says which interfaces were concerned and
judges nothing. Messages may get lost under a flood of them; then everything is concerned.
"""

from __future__ import annotations

import os
import select
import socket
import struct

from firewall.datapath import Happened

_RTMGRP_LINK, _RTMGRP_TC = 1 << 0, 1 << 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
# struct ifinfomsg and struct tcmsg both hold the interface's index after four bytes.
_INDEX = struct.Struct("=4xi")
_LINK_AND_TC = frozenset((16, 17, 36, 37, 44, 45))  # RTM_NEW and RTM_DEL of LINK, QDISC and TFILTER
_BUFFER = 1 << 16


class LinkEvents:
    """Made in the namespace that it listens to. wake() may be called from any thread."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._netlink = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._netlink.bind((0, _RTMGRP_LINK | _RTMGRP_TC))
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def wait(self, timeout_s: float) -> Happened:
        """Until something happens, wake() is called or the time is over."""
        ready, _, _ = select.select([self._netlink.fileno(), self._wake], [], [], timeout_s)
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return self._read() if self._netlink.fileno() in ready else Happened()

    def _read(self) -> Happened:
        found: set[int] = set()
        while True:
            try:
                found |= indexes(self._netlink.recv(_BUFFER))
            except BlockingIOError:
                return Happened(frozenset(found))
            except OSError:  # ENOBUFS: some were lost
                return Happened(everything=True)

    def close(self) -> None:
        self._netlink.close()
        os.close(self._wake)


def indexes(messages: bytes) -> set[int]:
    """Of the interfaces that a datagram of messages is about."""
    found, at = set(), 0
    while at + _HEADER.size + _INDEX.size <= len(messages):
        length, kind, *_ = _HEADER.unpack_from(messages, at)
        if kind in _LINK_AND_TC:
            found.add(_INDEX.unpack_from(messages, at + _HEADER.size)[0])
        if length < _HEADER.size:
            break
        at += -(-length // 4) * 4
    return found
