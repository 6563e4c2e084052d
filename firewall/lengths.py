"""Which prefix lengths occur where: the bitmaps beside the address tables (bpf/layout.h, struct lengths*).

Owns the bucket of a prefix and the counting that says when a bit may go. A bit too many costs a probe, a
bit too few would miss a rule, so a bit is set after its entry and cleared before its last entry goes.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.layout import C

BUCKET6_BITS = 16
_BUCKET4_BITS = 16
_BUCKETS = C["BUCKET_COUNT"]
_SHORTEST6 = C["BUCKET6_SHORTEST"]
Words = npt.NDArray[np.uint64]


class LengthBit(NamedTuple):
    """`length` occurs in `buckets` buckets from `first` on; no bucket: a short IPv6 length."""

    version: int
    scope: int
    length: int
    first: int
    buckets: int


def bucket6(top: int, bits: int) -> int:
    """Bucket of an IPv6 address by its top 32 bits, as bucket6() in bpf/keys.h."""
    return (top * C["BUCKET6_MULTIPLIER"] & 0xFFFFFFFF) >> (32 - bits)


def length_bit(version: int, scope: int, address: int, length: int, bits6: int = BUCKET6_BITS) -> LengthBit:
    if version == 4:
        spread = max(0, _BUCKET4_BITS - length)
        return LengthBit(4, scope, length, address >> 16, 1 << spread)
    if length < _SHORTEST6:
        return LengthBit(6, scope, length, 0, 0)
    return LengthBit(6, scope, length, bucket6(address >> 96, bits6), 1)


def length_bits(
    version: int,
    scopes: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.uint8],
    addresses: npt.NDArray[np.uint8],
) -> Counter[LengthBit]:
    """The bits of many prefixes, with how many stand behind each. `addresses`: network order bytes, a row each."""
    top = np.ascontiguousarray(addresses[:, :4]).view(">u4").reshape(-1).astype(np.uint64)
    if version == 4:
        first = top >> np.uint64(16)
    else:
        hashed = (top * np.uint64(C["BUCKET6_MULTIPLIER"]) & np.uint64(0xFFFFFFFF)) >> np.uint64(
            32 - BUCKET6_BITS
        )
        first = np.where(lengths < _SHORTEST6, np.uint64(0), hashed)
    codes = scopes.astype(np.uint64) << np.uint64(40) | lengths.astype(np.uint64) << np.uint64(32) | first
    counts: Counter[LengthBit] = Counter()
    for code, count in zip(*(each.tolist() for each in np.unique(codes, return_counts=True)), strict=True):
        length = code >> 32 & 0xFF
        buckets = 1 << max(0, _BUCKET4_BITS - length) if version == 4 else int(length >= _SHORTEST6)
        counts[LengthBit(version, code >> 40, length, code & 0xFFFFFFFF, buckets)] = count
    return counts


class LengthCounts:
    """How many prefixes stand behind each bit."""

    def __init__(self) -> None:
        self._counts: Counter[LengthBit] = Counter()

    def would_change(self, deltas: Counter[LengthBit]) -> tuple[list[LengthBit], list[LengthBit]]:
        """The bits that become needed and those that nobody needs any more, if `deltas` were added."""
        set_bits = [bit for bit, delta in deltas.items() if delta > 0 and not self._counts.get(bit)]
        cleared = [bit for bit, delta in deltas.items() if delta < 0 and self._counts[bit] + delta == 0]
        return set_bits, cleared

    def add(self, deltas: Counter[LengthBit]) -> None:
        for bit, delta in deltas.items():
            count = self._counts.get(bit, 0) + delta
            if count:
                self._counts[bit] = count
            else:
                self._counts.pop(bit, None)

    def bits(self) -> list[LengthBit]:
        return list(self._counts)


def bucket_words(bit: LengthBit, words: Words) -> Words:
    """The words of an array of all buckets of a version, (4 * 65536) or (4 * 65536, 2), that hold a bit; none for
    a short IPv6 length."""
    start = bit.scope * _BUCKETS + bit.first
    rows = slice(start, start + bit.buckets)
    return words[rows] if bit.version == 4 else words[rows, (bit.length - _SHORTEST6) // 64]


def bit_mask(bit: LengthBit) -> np.uint64:
    at = bit.length if bit.version == 4 else (bit.length - _SHORTEST6) % 64
    return np.uint64(1 << at)
