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

    def since(self, reset: Reset | None) -> Hits:
        """What of all hits came after a reset."""
        if reset is None:
            return self
        packets = max(0, self.packets - reset.packets)
        if not packets:
            return NO_HITS
        return Hits(packets, max(0, self.bytes - reset.bytes), self.last_hit)


NO_HITS = Hits(0, 0, 0.0)


class Reset(NamedTuple):
    """What a rule had counted when its counters were reset, and when: seconds since 1970."""

    packets: int
    bytes: int
    at: float


class InterfaceHits(NamedTuple):
    """Numbers of the enums hook, verdict and reason."""

    hook: int
    verdict: int
    reason: int
    packets: int
    bytes: int
