"""What `nft -j list set` writes: one JSON document with the elements of a set in it.

Owns reading it piece by piece, however long it is: the document is cut between elements, and each piece is JSON again.
Elements that are no addresses (ports, concatenations) are bad elements.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson

from firewall.errors import InvalidInput
from firewall.lists.collector import Collector, Rows

CHUNK_BYTES = 1 << 18
_MOST_PIECE_BYTES = 4 << 20  # between two places where it may be cut
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_ELEMENTS = re.compile(rb'"elem"\s*:\s*\[')
_HINT = "nft -j list set FAMILY TABLE SET writes what is read here"


class NftDocument:
    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._begun = b""
        self._depth = 0  # of brackets around what is in `_begun`
        self._base: int | None = None  # the depth inside the list of elements that we are in
        self._elements = 0
        self._enough = CHUNK_BYTES
        self._is_begun = False

    def feed(self, part: bytes) -> None:
        self._begun += part
        while len(self._begun) >= self._enough:
            is_cut = self._step(is_end=False)
            # Where nothing could be cut, the same bytes are not looked at again for each byte that comes.
            self._enough = CHUNK_BYTES if is_cut else len(self._begun) + CHUNK_BYTES
        if len(self._begun) > _MOST_PIECE_BYTES:
            raise self._broken("an element is longer than any can be")

    def end(self) -> None:
        """Raises InvalidInput where the document is not whole."""
        while self._step(is_end=True):
            pass
        _, depths = _structure(self._begun)
        left = self._depth + (int(depths[-1]) if len(depths) else 0)
        if self._base is not None or left or not self._is_begun:
            raise self._broken("it ends before it is whole")

    def _step(self, is_end: bool) -> bool:
        """Whether something of what has come was dealt with."""
        return self._seek(is_end) if self._base is None else self._take_elements()

    def _seek(self, is_end: bool) -> bool:
        plain, depths = _structure(self._begun)
        self._is_begun = self._is_begun or bool(len(depths) and depths.max() + self._depth > 0)
        found = _ELEMENTS.search(plain)
        # Without one: all but what may be the beginning of one, a string at least.
        if found and self._elements:
            detail = "it has elements of more than one set, of which one may be what the other spares"
            raise self._broken(detail)
        cut = found.end() if found else (0 if is_end else _last_outside(self._begun, depths))
        if not cut:
            return False
        self._depth += int(depths[cut - 1])
        self._begun = self._begun[cut:]
        self._base = self._depth if found else None
        return True

    def _take_elements(self) -> bool:
        """`_begun` begins inside the list."""
        plain, depths = _structure(self._begun)
        characters = np.frombuffer(plain, np.uint8)
        closing = np.flatnonzero(depths < 0)
        if len(closing):
            cut, rest = int(closing[0]), int(closing[0])
        else:
            commas = np.flatnonzero((characters == ord(",")) & (depths == 0) & (_outside(plain)))
            if not len(commas):
                return False
            cut = int(commas[-1])
            rest = cut + 1
        self._elements_of(self._begun[:cut])
        self._begun = self._begun[rest:]
        if len(closing):
            self._base = None  # the bracket itself is counted where the next list is sought
        return True

    def _elements_of(self, piece: bytes) -> None:
        try:
            elements = orjson.loads(b"[" + piece + b"]")
        except orjson.JSONDecodeError as error:
            raise self._broken(f"after element {self._elements:,} it is not JSON: {error.msg}") from None
        texts: list[str] = []
        numbers: list[int] = []
        ends: list[float | None] = []
        comments: list[str] = []
        for element in elements:
            self._elements += 1
            try:
                text, left_s, comment = element_of(element)
            except ValueError as error:
                self._collector.bad(self._elements, str(error))
                continue
            texts.append(text)
            numbers.append(self._elements)
            ends.append(None if left_s is None else round(self._collector.now + left_s, 3))
            comments.append(comment)
        self._collector.take(Rows(texts, numbers, ends, comments))

    def _broken(self, detail: str) -> InvalidInput:
        return InvalidInput(f"the document is not nft's: {detail}", _HINT, code="invalid_list")


def element_of(element: Any) -> tuple[str, int | None, str]:
    """Address, seconds that are left, comment. Raises ValueError."""
    left_s, comment = None, ""
    if isinstance(element, dict) and isinstance(inner := element.get("elem"), dict):
        element = inner.get("val")
        left_s = inner.get("expires", inner.get("timeout"))
        comment = inner.get("comment", "")
    if left_s is not None and (not isinstance(left_s, int) or not 0 <= left_s <= 1 << 40):
        raise ValueError("its time is not a number of seconds")
    return _text(element), left_s, comment if isinstance(comment, str) else ""


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and len(value) == 1:
        if isinstance(prefix := value.get("prefix"), dict) and isinstance(prefix.get("addr"), str):
            return f"{prefix['addr']}/{prefix.get('len')}"
        ends = value.get("range")
        if isinstance(ends, list) and len(ends) == 2 and all(isinstance(each, str) for each in ends):
            return f"{ends[0]}-{ends[1]}"
    raise ValueError("is neither an address, a prefix nor a range")


def _structure(text: bytes) -> tuple[bytes, Any]:
    """Without what escapes in strings mean, as long as before; and how many brackets are open after each byte."""
    plain = _ESCAPE.sub(b"__", text) if b"\\" in text else text
    characters = np.frombuffer(plain, np.uint8)
    steps = np.zeros(len(characters), np.int32)
    steps[(characters == ord("[")) | (characters == ord("{"))] = 1
    steps[(characters == ord("]")) | (characters == ord("}"))] = -1
    steps[~_outside(plain)] = 0
    return plain, np.cumsum(steps)


def _outside(plain: bytes) -> Any:
    """Which bytes are in no string."""
    return np.cumsum(np.frombuffer(plain, np.uint8) == ord('"')) % 2 == 0


def _last_outside(text: bytes, depths: Any) -> int:
    """Past the last bracket that is in no string."""
    changes = np.flatnonzero(np.diff(depths, prepend=0))
    return int(changes[-1]) + 1 if len(changes) else 0
