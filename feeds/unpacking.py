"""Packed bytes to what they hold, never more than was agreed.

Owns gzip, in the way an answer is sent and as the list itself, and the bound on what comes out: a few packed bytes can
hold very many. Nothing is unpacked that would be over the bound.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from feeds.errors import FeedFailed

PIECE_BYTES = 1 << 18
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class Unpacker:
    """`encoding`: of the answer, as its Content-Encoding says."""

    def __init__(self, most_bytes: int, encoding: str = "") -> None:
        """Raises FeedFailed."""
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise FeedFailed("unreadable", f"the answer is packed as {encoding!r}, which was not asked for")
        self._most, self._came = most_bytes, 0
        self._layers = [_Gzip()] if encoding.endswith("gzip") else []
        self._begin: bytes | None = b""

    def feed(self, packed: bytes) -> Iterator[bytes]:
        """Raises FeedFailed."""
        for part in self._through(packed, 0):
            self._came += len(part)
            if self._came > self._most:
                raise FeedFailed("too_large", f"the list is larger than max_bytes, {self._most:,}")
            yield part

    def end(self) -> Iterator[bytes]:
        """What was kept back. Raises FeedFailed where a packed list is not whole."""
        if self._begin:
            yield self._begin
        if any(not layer.is_whole for layer in self._layers):
            raise FeedFailed("broken", "the packed list ends before it is whole")

    def _through(self, packed: bytes, at: int) -> Iterator[bytes]:
        if at < len(self._layers):
            for part in self._layers[at].pieces(packed):
                yield from self._through(part, at + 1)
        elif self._begin is None:
            yield packed
        else:  # a list that is itself a packed file is told by its first two bytes
            self._begin += packed
            if len(self._begin) >= len(_GZIP):
                begin, self._begin = self._begin, None
                if begin.startswith(_GZIP):
                    self._layers.append(_Gzip())
                    yield from self._through(begin, at)
                else:
                    yield begin


class _Gzip:
    """One after the other, as `cat a.gz b.gz` makes them."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP_WINDOW)
        self._is_begun = False

    @property
    def is_whole(self) -> bool:
        return self._stream.eof or not self._is_begun

    def pieces(self, packed: bytes) -> Iterator[bytes]:
        while packed:
            if self._stream.eof:
                self._stream = zlib.decompressobj(_GZIP_WINDOW)
            self._is_begun = True
            try:
                piece = self._stream.decompress(packed, PIECE_BYTES)
            except zlib.error as error:
                raise FeedFailed("broken", f"the packed list is broken: {error}") from None
            packed = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if piece:
                yield piece
