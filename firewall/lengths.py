"""Which prefix lengths occur where: the bitmaps beside the policy's prefixes (bpf/layout.h, struct lengths*).

Owns the bucket of a prefix. A bit too many costs a probe, a bit too few would miss a rule.
"""

from __future__ import annotations

from typing import NamedTuple

from firewall.layout import C

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
    """Bucket of an IPv6 address by its top 32 bits, as bucket6() in bpf/keys.h."""
    return (top * C["BUCKET6_MULTIPLIER"] & 0xFFFFFFFF) >> (32 - bits)


def length_bit(version: int, scope: int, address: int, length: int, bits6: int) -> LengthBit:
    if version == 4:
        spread = max(0, _BUCKET4_BITS - length)
        return LengthBit(4, scope, length, address >> 16, 1 << spread)
    if length < _SHORTEST6:
        return LengthBit(6, scope, length, 0, 0)
    return LengthBit(6, scope, length, bucket6(address >> 96, bits6), 1)
