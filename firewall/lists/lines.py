"""Bytes as they arrive, to whole lines.

Owns line ends (of Unix, Windows and old Macs), numbers of lines, and what is no text at all. It holds one line that is
not whole yet and gives on the others some hundred thousand bytes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from firewall.errors import InvalidInput

CHUNK_BYTES = 1 << 18
MOST_LINE_BYTES = 1 << 20
TakeLines = Callable[[bytes, int], None]


class LineCutter:
    """`take`: gets whole lines, each ended by a line feed, and the number of the first, counted from 1."""

    def __init__(self, take: TakeLines) -> None:
        self._take = take
        self._number = 1
        self._begun = bytearray()

    def feed(self, part: bytes) -> None:
        self._begun += part
        while len(self._begun) >= CHUNK_BYTES:
            # A carriage return at the very end may be half of a line end.
            end = max(self._begun.rfind(b"\n"), self._begun.rfind(b"\r", 0, len(self._begun) - 1)) + 1
            if not end:
                if len(self._begun) > MOST_LINE_BYTES:
                    detail = f"line {self._number} is longer than {MOST_LINE_BYTES:,} bytes"
                    raise InvalidInput(detail, "is it a list? name its format", code="invalid_list")
                return
            self._give(bytes(self._begun[:end]))
            del self._begun[:end]

    def end(self) -> None:
        if self._begun:
            self._give(bytes(self._begun) + b"\n")
            self._begun.clear()

    def _give(self, chunk: bytes) -> None:
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._take(chunk, self._number)
        self._number += chunk.count(b"\n")


def texts_of(chunk: bytes, first: int, bad: Callable[[int, str], None]) -> list[str]:
    """Its lines, one by one; those that are not UTF-8 are told and empty."""
    try:
        return chunk.decode().split("\n")[:-1]
    except UnicodeDecodeError:
        return list(_decoded(chunk.split(b"\n")[:-1], first, bad))


def _decoded(lines: list[bytes], first: int, bad: Callable[[int, str], None]) -> Iterator[str]:
    for number, line in enumerate(lines, first):
        try:
            yield line.decode()
        except UnicodeDecodeError:
            bad(number, "is not UTF-8 text")
            yield ""
