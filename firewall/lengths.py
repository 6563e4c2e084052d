"""Which prefix lengths occur where: the bitmaps beside the address tables (bpf/layout.h, struct lengths*).

Owns the bucket of a prefix and the counting that says when a bit may go. A bit too many costs a probe, a
bit too few would miss a rule, so a bit is set after its entry and cleared before its last entry goes.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from firewall.layout import C

BUCKET6_BITS = 16
POLICY_BUCKET6_BITS = 12
_BUCKET4_BITS = 16
_SHORTEST6 = C["BUCKET6_SHORTEST"]


class LengthBit(NamedTuple):
    """`length` occurs in `buckets` buckets from `first` on; no bucket: a short IPv6 length."""

    version: int
    scope: int
    length: int
    first: int
    buckets: int


def bucket6(top: int, bits: int) -> int:
    """Bucket of an IPv6 address by its top 32 bits, as bucket6() in bpf/decide.h."""
    return (top * C["BUCKET6_MULTIPLIER"] & 0xFFFFFFFF) >> (32 - bits)


def length_bit(version: int, scope: int, address: int, length: int, bits6: int = BUCKET6_BITS) -> LengthBit:
    if version == 4:
        spread = max(0, _BUCKET4_BITS - length)
        return LengthBit(4, scope, length, address >> 16, 1 << spread)
    if length < _SHORTEST6:
        return LengthBit(6, scope, length, 0, 0)
    return LengthBit(6, scope, length, bucket6(address >> 96, bits6), 1)


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
