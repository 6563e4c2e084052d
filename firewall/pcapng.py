"""Reports as a pcapng file, block by block (draft-ietf-opsawg-pcapng).

Owns the format. A file is a section header, then packets; before the first packet of an interface and hook stands the
block that describes it.
"""

from __future__ import annotations

import struct

from firewall.report import Report

MEDIA_TYPE = "application/x-pcapng"

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER, _LENGTH_UNKNOWN = 0x1A2B3C4D, 0xFFFFFFFFFFFFFFFF
_LINKTYPE_ETHERNET, _LINKTYPE_RAW = 1, 101
_END, _COMMENT = 0, 1
_IF_NAME, _IF_DESCRIPTION, _IF_RESOLUTION = 2, 3, 9
_NANOSECONDS = b"\x09"  # a time is a multiple of 10 ** -9 s
_USER_APPLICATION = 4
_PACKET_FLAGS = 2
_DIRECTION = {"ingress": 1, "egress": 2}  # inbound, outbound


class PcapngWriter:
    """Makes the bytes of one file, in order: header(), then packet() for each."""

    def __init__(self, application: str, snap_length: int) -> None:
        self._application = application
        self._snap_length = snap_length
        self._interfaces: dict[tuple[str, str, bool], int] = {}

    def header(self) -> bytes:
        body = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN)
        return _block(_SECTION, body + _options((_USER_APPLICATION, self._application.encode())))

    def packet(self, report: Report) -> bytes:
        """With the description of its interface where that is new."""
        where = (report.interface, report.hook, report.is_bare)
        described = b""
        if where not in self._interfaces:
            described = self._interface(*where)
            self._interfaces[where] = len(self._interfaces)
        content = report.content[: self._snap_length]
        body = struct.pack(
            "<IIIII",
            self._interfaces[where],
            report.time_ns >> 32,
            report.time_ns & 0xFFFFFFFF,
            len(content),
            report.length,
        )
        options = _options(
            (_COMMENT, report.comment.encode()),
            (_PACKET_FLAGS, struct.pack("<I", _DIRECTION[report.hook])),
        )
        return described + _block(_PACKET, body + _padded(content) + options)

    def _interface(self, name: str, hook: str, is_bare: bool) -> bytes:
        linktype = _LINKTYPE_RAW if is_bare else _LINKTYPE_ETHERNET
        options = _options(
            (_IF_NAME, name.encode()),
            (_IF_DESCRIPTION, f"{name} {hook}".encode()),
            (_IF_RESOLUTION, _NANOSECONDS),
        )
        return _block(_INTERFACE, struct.pack("<HHI", linktype, 0, self._snap_length) + options)


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _options(*options: tuple[int, bytes]) -> bytes:
    some = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
    return b"".join(some) + struct.pack("<HH", _END, 0)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)
