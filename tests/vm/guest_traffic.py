"""Runs inside the machine: traffic between two cards on one hub, one of them in a namespace of its own.

    namespace peer (eth1 10.91.0.2) ───hub─── (eth0 10.91.0.1) the machine, where the service runs

Owns pings, floods and what of them comes past the ingress hook. Standard library only: the machine has nothing else.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
import time
from types import TracebackType

from tests.vm.guest import eventually, run

OURS, THEIRS = "10.91.0.1", "10.91.0.2"
FLOODER = "203.0.113.66"
MARK = b"a frame of the flood "
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def join() -> None:
    """Puts eth1 into its namespace and brings both cards up; pings pass."""
    run("ip netns add peer")
    run("ip link set eth1 netns peer")
    run(f"ip address add {OURS}/24 dev eth0")
    run("ip link set eth0 up")
    run(f"ip -n peer address add {THEIRS}/24 dev eth1")
    run("ip -n peer link set eth1 up")
    eventually(answers, "ping passes before anything is filtered")


def answers(count: int = 1) -> bool:
    """Whether the machine answers the peer's pings, every one."""
    shown = run(f"ip netns exec peer ping -n -q -c {count} -i 0.2 -W 2 {OURS}", status=None)
    return f" {count} received" in shown


class Flood:
    """Frames from FLOODER, as fast as a thread sends them; counts those that come past the ingress hook of eth0.

    `passed` is exact: XDP, native or generic, judges a frame before any packet socket sees it.
    """

    def __init__(self) -> None:
        self.sent = self.passed = 0
        self._ends = threading.Event()
        self._sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        self._sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._sniffer.settimeout(0.3)
        self._sniffer.bind(("eth0", 0x0800))
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._send, self._count)]

    def _send(self) -> None:
        with open("/run/netns/peer", "rb") as namespace:  # of this thread alone
            if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as card:
            card.bind(("eth1", 0))
            frame = _frame()
            while not self._ends.is_set():
                card.send(frame)
                self.sent += 1
                time.sleep(0.002)

    def _count(self) -> None:
        while True:
            try:
                self.passed += MARK in self._sniffer.recv(2048)
            except TimeoutError:
                if self._ends.is_set():
                    return

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        eventually(lambda: self.sent > 5, "the flood begins")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()
        self._sniffer.close()


def _frame() -> bytes:
    payload = MARK * 2
    udp = struct.pack("!HHHH", 5000, 9, 8 + len(payload), 0) + payload
    ends = socket.inet_aton(FLOODER) + socket.inet_aton(OURS)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends
    return b"\xff" * 6 + b"\x02\0\0\0\0\x42" + b"\x08\0" + header + udp


def fraction_passed() -> tuple[int, int]:
    """Frames sent in a second, and how many of them passed."""
    with Flood() as flood:
        time.sleep(1)
    return flood.sent, flood.passed
