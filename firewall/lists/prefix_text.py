"""Addresses and CIDR as text, by the million, to columns.

Owns the fast way and its order: row by row as the texts come. A text that is wrong, or a range, makes all of it
`None`: then firewall.lists.ranges looks at each.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firewall.lists.ipv4_text import parse_ipv4


@dataclass(frozen=True)
class Parsed:
    """Of one IP version: `rows` says which texts these are, None for all of them. Host bits may be set."""

    version: int
    lengths: npt.NDArray[np.uint8]
    addresses: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.intp] | None = None


def parse_texts(texts: Sequence[str]) -> list[Parsed] | None:
    is_six = [":" in text for text in texts]
    if not any(is_six):
        four = _four(texts)
        return None if four is None else [four]
    six_rows = np.flatnonzero(np.array(is_six))
    found = [_six([texts[row] for row in six_rows.tolist()], six_rows)]
    if len(six_rows) < len(texts):
        four_rows = np.flatnonzero(~np.array(is_six))
        found.append(_four([texts[row] for row in four_rows.tolist()], four_rows))
    return None if any(each is None for each in found) else [each for each in found if each is not None]


def _four(texts: Sequence[str], rows: npt.NDArray[np.intp] | None = None) -> Parsed | None:
    try:
        parsed = parse_ipv4(("\n".join(texts) + "\n").encode("ascii"))
    except UnicodeEncodeError:
        return None
    if parsed is None or len(parsed[0]) != len(texts):
        return None
    return Parsed(4, *parsed, rows)


def _six(texts: Sequence[str], rows: npt.NDArray[np.intp]) -> Parsed | None:
    pairs = [text.partition("/") for text in texts]
    try:
        packed = b"".join([socket.inet_pton(socket.AF_INET6, address) for address, _, _ in pairs])
    except (OSError, ValueError):
        return None
    lengths = np.full(len(texts), 128, np.int64)
    for at, (_, slash, length) in enumerate(pairs):
        if slash:
            if not (length.isascii() and length.isdecimal() and len(length) <= 3):
                return None
            lengths[at] = int(length)
    if lengths.max() > 128:
        return None
    return Parsed(6, lengths.astype(np.uint8), np.frombuffer(packed, np.uint8).reshape(-1, 16), rows)


def masks(lengths: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """A row of `size` bytes a length, its leading bits set."""
    return _MASKS[size][lengths]


def _masks(size: int) -> npt.NDArray[np.uint8]:
    lengths = np.arange(size * 8 + 1)
    bits = np.clip(lengths[:, None] - np.arange(size) * 8, 0, 8)
    return np.asarray(0xFF00 >> bits & 0xFF, np.uint8)


_MASKS = {size: _masks(size) for size in (4, 16)}
