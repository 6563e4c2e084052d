"""Files of captured packets, pcap and pcapng, to frames as the filters read them.

Owns these two formats (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng) and which link types a filter can judge. Reads
what is in memory; a file that ends inside a packet is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from firewall.errors import InvalidInput

_PCAP = {
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xd4\xc3\xb2\xa1": "<",
    b"\xa1\xb2\x3c\x4d": ">",
    b"\x4d\x3c\xb2\xa1": "<",
}
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6
_ETHERNET, _COOKED, _COOKED2 = 1, 113, 276
_BARE = frozenset((12, 14, 101, 228, 229))  # raw IP, as libpcap and others number it


class CapturedFrame(NamedTuple):
    """`length`: on the wire; the capture may have kept less of it."""

    frame: bytes
    length: int
    has_ethernet: bool


def captured_frames(content: bytes) -> Iterator[CapturedFrame]:
    """In the file's order. Raises InvalidInput, at the place where it can go on no more."""
    try:
        yield from _pcap(content) if content[:4] in _PCAP else _pcapng(content)
    except struct.error:
        raise _invalid("it ends in the middle of a packet") from None


def _invalid(detail: str) -> InvalidInput:
    return InvalidInput(
        f"the capture cannot be read: {detail}",
        "write it with tcpdump -w or Wireshark",
        code="invalid_capture",
    )


def _pcap(content: bytes) -> Iterator[CapturedFrame]:
    order = _PCAP[content[:4]]
    (link,) = struct.unpack_from(f"{order}I", content, 20)
    at = 24
    while at < len(content):
        size, length = struct.unpack_from(f"{order}II", content, at + 8)
        yield _frame(link & 0xFFFF, _bytes(content, at + 16, size), length)
        at += 16 + size


def _pcapng(content: bytes) -> Iterator[CapturedFrame]:
    if content[:4] != _SECTION.to_bytes(4, "big"):
        raise _invalid("it is neither pcap nor pcapng")
    order, at = "<", 0
    links: list[int] = []
    while at < len(content):
        kind = struct.unpack_from(f"{order}I", content, at)[0]
        if kind == _SECTION:
            order, links = ("<" if _bytes(content, at + 8, 4) == b"\x4d\x3c\x2b\x1a" else ">"), []
        (size,) = struct.unpack_from(f"{order}I", content, at + 4)
        if size < 12 or size % 4:
            raise _invalid(f"a block of {size} bytes is not possible")
        if at + size > len(content):
            raise struct.error
        block = _bytes(content, at + 8, size - 12)
        if kind == _INTERFACE:
            links.append(struct.unpack_from(f"{order}H", block)[0])
        elif kind == _ENHANCED:
            interface, _, _, kept, length = struct.unpack_from(f"{order}5I", block)
            yield _frame(_link(links, interface), _bytes(block, 20, kept), length)
        elif kind == _SIMPLE:
            (length,) = struct.unpack_from(f"{order}I", block)
            yield _frame(_link(links, 0), block[4 : 4 + length], length)
        at += size


def _link(links: list[int], interface: int) -> int:
    if interface >= len(links):
        raise _invalid(f"a packet names interface {interface}, which the file does not describe")
    return links[interface]


def _bytes(content: bytes, at: int, size: int) -> bytes:
    if at + size > len(content):
        raise struct.error
    return content[at : at + size]


def _frame(link: int, frame: bytes, length: int) -> CapturedFrame:
    length = max(length, len(frame))
    if link == _ETHERNET:
        return CapturedFrame(frame, length, True)
    if link in _BARE:
        return CapturedFrame(frame, length, False)
    if link in (_COOKED, _COOKED2):
        # What Linux puts in the place of a link header ("any"): the protocol is all that matters of it.
        at, header = (14, 16) if link == _COOKED else (0, 20)
        ethernet = bytes(12) + _bytes(frame, at, 2)
        return CapturedFrame(ethernet + frame[header:], length - header + len(ethernet), True)
    raise _invalid(f"link type {link} is neither Ethernet nor raw IP")
