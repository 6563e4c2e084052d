"""What was counted: plain values, no counting."""

from __future__ import annotations

from typing import NamedTuple


class Hits(NamedTuple):
    """`last_hit`: seconds since 1970, 0 for never."""

    packets: int
    bytes: int
    last_hit: float

    def plus(self, other: Hits) -> Hits:
        return Hits(
            self.packets + other.packets, self.bytes + other.bytes, max(self.last_hit, other.last_hit)
        )


NO_HITS = Hits(0, 0, 0.0)


class InterfaceHits(NamedTuple):
    """Numbers of the enums hook, verdict and reason."""

    hook: int
    verdict: int
    reason: int
    packets: int
    bytes: int
