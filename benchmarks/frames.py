"""Frames as rows of an array: Ethernet, IPv4 or IPv6, and the ports; every byte of them is set.

Owns the layout of the headers. Addresses are integers (IPv4) or rows of 16 bytes (IPv6), one a frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.driver import FRAME_BYTES, Frames
from benchmarks.world import GUARDED_MAC, INJECT_MAC

TCP, UDP, ICMP = 6, 17, 1
_DESTINATION4, _DESTINATION6 = 0xC6120001, bytes.fromhex("20010db8ffff" + "00" * 9 + "01")
_SYN = 2
_ETHERNET = bytes.fromhex((GUARDED_MAC + INJECT_MAC).replace(":", ""))

Addresses4 = npt.NDArray[np.uint32]
Addresses6 = npt.NDArray[np.uint8]


def _big_endian(values: Any, size: int, count: int) -> Frames:
    """Rows of `size` bytes."""
    filled = np.broadcast_to(np.asarray(values), (count,)).astype(f">u{size}")
    return filled.view(np.uint8).reshape(count, size)


def _ethernet(count: int, ethertype: int) -> Frames:
    frames = np.zeros((count, FRAME_BYTES), np.uint8)
    frames[:, :12] = np.frombuffer(_ETHERNET, np.uint8)
    frames[:, 12:14] = _big_endian(ethertype, 2, count)
    return frames


def _write_ports(frames: Frames, at: int, protocols: Any, source_ports: Any, destination_ports: Any) -> None:
    """UDP and TCP start with the ports; what follows says the length or the offset and flags."""
    count = len(frames)
    protocols = np.broadcast_to(np.asarray(protocols), (count,))
    frames[:, at : at + 2] = _big_endian(source_ports, 2, count)
    frames[:, at + 2 : at + 4] = _big_endian(destination_ports, 2, count)
    is_udp, is_tcp = protocols == UDP, protocols == TCP
    frames[is_udp, at + 4 : at + 6] = _big_endian(FRAME_BYTES - at, 2, 1)
    frames[is_tcp, at + 12], frames[is_tcp, at + 13] = 5 << 4, _SYN
    # ICMP has type and code where the ports would be: an echo request.
    is_icmp = protocols == ICMP
    frames[is_icmp, at], frames[is_icmp, at + 1] = 8, 0


def _checksum(header: Frames) -> npt.NDArray[np.uint16]:
    """Of IPv4 headers of 20 bytes (RFC 1071)."""
    sums = header.view(">u2").astype(np.uint32).sum(axis=1)
    sums = (sums & 0xFFFF) + (sums >> 16)
    sums = (sums & 0xFFFF) + (sums >> 16)
    return np.asarray(~sums & 0xFFFF, np.uint16)


def ipv4_frames(
    sources: Addresses4,
    destinations: Any = _DESTINATION4,
    protocols: Any = UDP,
    source_ports: Any = 40000,
    destination_ports: Any = 9,
) -> Frames:
    count = len(sources)
    frames = _ethernet(count, 0x0800)
    header = np.zeros((count, 20), np.uint8)
    header[:, 0], header[:, 8], header[:, 9] = 0x45, 64, protocols
    header[:, 2:4] = _big_endian(FRAME_BYTES - 14, 2, count)
    header[:, 12:16] = _big_endian(sources, 4, count)
    header[:, 16:20] = _big_endian(destinations, 4, count)
    header[:, 10:12] = _big_endian(_checksum(header), 2, count)
    frames[:, 14:34] = header
    _write_ports(frames, 34, protocols, source_ports, destination_ports)
    return frames


def ipv6_frames(sources: Addresses6) -> Frames:
    """UDP."""
    count = len(sources)
    frames = _ethernet(count, 0x86DD)
    frames[:, 14], frames[:, 20], frames[:, 21] = 0x60, UDP, 64
    frames[:, 18:20] = _big_endian(FRAME_BYTES - 54, 2, count)
    frames[:, 22:38] = sources
    frames[:, 38:54] = np.frombuffer(_DESTINATION6, np.uint8)
    _write_ports(frames, 54, UDP, 40000, 9)
    return frames


def round_robin(frames: Frames, count: int) -> Frames:
    """`count` rows: the frames over and over."""
    return np.ascontiguousarray(frames[np.arange(count) % len(frames)])
