"""The agent: a process inside one namespace that sends, listens and captures for a test.

It reads one JSON object a line on stdin, `{"do": name, ...arguments}`, and answers each with one line:
`{"result": ...}` or `{"error": text}`. It ends with its stdin. It runs as a file of its own, so it must
import nothing but the standard library.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
ETH_P_ALL = 0x0003
# linux/socket.h, linux/if_packet.h and asm-generic/socket.h; Python has no names for them.
SOL_PACKET = 263
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
# linux/if_tun.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CAPTURE_BYTES = 65536
CAPTURE_BUFFER_BYTES = 16 << 20

captures: dict[str, socket.socket] = {}
senders: dict[str, socket.socket] = {}
tuns: dict[str, int] = {}
floods: dict[str, Flood] = {}


def _answer_stream(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_echo_stream, args=(connection,), daemon=True).start()


def _echo_stream(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)


def _answer_datagrams(listener: socket.socket) -> None:
    while True:
        data, sender = listener.recvfrom(65535)
        listener.sendto(data, sender)


def listen(transport: str, port: int) -> int:
    """Echo what arrives on a port, over IPv4 and IPv6. Port 0 lets the kernel choose; returns the port."""
    kind, answer = {
        "tcp": (socket.SOCK_STREAM, _answer_stream),
        "udp": (socket.SOCK_DGRAM, _answer_datagrams),
    }[transport]
    listener = socket.socket(socket.AF_INET6, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    if transport == "tcp":
        listener.listen()
    threading.Thread(target=answer, args=(listener,), daemon=True).start()
    return int(listener.getsockname()[1])


def exchange(
    transport: str,
    family: int,
    address: str,
    port: int,
    source: str | None,
    source_port: int,
    timeout_s: float,
) -> str:
    """Send one message to an echo port. "answered", "timeout", or the name of the socket's error."""
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[transport]
    with socket.socket(FAMILIES[family], kind) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.settimeout(timeout_s)
        if source or source_port:
            client.bind((source or ("0.0.0.0" if family == 4 else "::"), source_port))
        try:
            client.connect((address, port))
            client.sendall(b"ebpf-fw")
            return "answered" if client.recv(64) == b"ebpf-fw" else "other answer"
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return type(error).__name__


class Flood(threading.Thread):
    """Sends one frame again and again. `sent` is whole once the thread was joined."""

    def __init__(self, interface: str, frame: bytes, pause_s: float) -> None:
        super().__init__(daemon=True)
        self._sender, self._frame, self._pause_s = _sender(interface), frame, pause_s
        self.ending = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self.ending.wait(self._pause_s):
            self._sender.send(self._frame)
            self.sent += 1


def start_flood(interface: str, frame: str, pause_s: float) -> None:
    """Send a frame (hex) over and over, with pauses, until `stop_flood`."""
    floods[interface] = Flood(interface, bytes.fromhex(frame), pause_s)
    floods[interface].start()


def stop_flood(interface: str) -> int:
    """Returns how many frames were sent."""
    flood = floods.pop(interface)
    flood.ending.set()
    flood.join()
    return flood.sent


def _sender(interface: str) -> socket.socket:
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((interface, 0))
    return sender


def send(interface: str, frames: list[str]) -> int:
    """Send frames (hex) as they are, through the interface's egress hooks. Returns how many."""
    if interface not in senders:
        senders[interface] = _sender(interface)
    for frame in frames:
        try:
            senders[interface].send(bytes.fromhex(frame))
        except OSError as error:
            # How the kernel tells a sender that an egress filter dropped its frame.
            if error.errno != errno.ENOBUFS:
                raise
    return len(frames)


def open_tun(interface: str) -> None:
    """Make a tun device: what is written to it arrives at the interface. It goes with the agent."""
    tuns[interface] = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tuns[interface], TUNSETIFF, struct.pack("16sH", interface.encode(), IFF_TUN | IFF_NO_PI))


def write_tun(interface: str, packets: list[str]) -> None:
    """Let packets (hex, from the IP header on) arrive at the interface."""
    for packet in packets:
        os.write(tuns[interface], bytes.fromhex(packet))


def read_tun(interface: str, needle: str, timeout_s: float) -> str | None:
    """The first packet (hex) sent out of it that contains the needle (hex); None after the timeout."""
    wanted, deadline = bytes.fromhex(needle), time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([tuns[interface]], [], [], left)[0]:
            return None
        packet = os.read(tuns[interface], CAPTURE_BYTES)
        if wanted in packet:
            return packet.hex()
    return None


def capture(interface: str) -> None:
    """Start to keep the frames that arrive on an interface; a second call forgets those kept so far."""
    stop_capture(interface)
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, CAPTURE_BUFFER_BYTES)
    tap.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    tap.bind((interface, ETH_P_ALL))
    captures[interface] = tap


def captured(interface: str, needle: str, timeout_s: float) -> str | None:
    """The first kept or arriving frame (hex) that contains the needle (hex); None after the timeout."""
    tap, wanted = captures[interface], bytes.fromhex(needle)
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        tap.settimeout(left)
        try:
            frame = tap.recv(CAPTURE_BYTES)
        except TimeoutError:
            return None
        if wanted in frame:
            return frame.hex()
    return None


def stop_capture(interface: str) -> None:
    if interface in captures:
        captures.pop(interface).close()


COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__: command
    for command in (
        listen,
        exchange,
        send,
        start_flood,
        stop_flood,
        open_tun,
        write_tun,
        read_tun,
        capture,
        captured,
        stop_capture,
    )
}


def main() -> None:
    # On one CPU, so that frames sent one after the other also arrive so: veth queues them by CPU.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": COMMANDS[request.pop("do")](**request)}
        except Exception as error:  # the test sees it; the agent goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
