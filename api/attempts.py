"""Accesses that were denied: how often a source may fail, and what the audit shall hear of it.

Owns both counts and their bounds: whoever fails from however many addresses costs a fixed amount of memory, and some
entries of the audit a flush. Credentials that are right are never refused here, so nobody locks another out by failing
in its place; guessing is hopeless by the tokens' length (docs/adr/0017).
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from firewall.audit_entries import Denied
from firewall.audit_entry import Origin

BURST = 10  # failures at once
REFILL_S = 6.0  # until one more may fail
MOST_SOURCES = 4096
MOST_NOTED = 256
MOST_TOLD = 20  # entries a flush
OTHERS = "others"


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class Attempts:
    """Used on the event loop alone."""

    def __init__(
        self, steady: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._steady, self._wall = steady, wall
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._noted: dict[tuple[str, str, str], Denied] = {}

    def fail(self, address: str) -> int:
        """One more from an address; how many seconds it has to wait, 0 while it may go on."""
        now, key = self._steady(), network_of(address)
        bucket = self._buckets.pop(key, None) or _Bucket(BURST, now)
        bucket.left = min(BURST, bucket.left + (now - bucket.at) / REFILL_S)
        bucket.at = now
        self._buckets[key] = bucket
        if len(self._buckets) > MOST_SOURCES:
            self._buckets.popitem(last=False)  # who failed longest ago
        if bucket.left < 1:
            return max(1, math.ceil((1 - bucket.left) * REFILL_S))
        bucket.left -= 1
        return 0

    def note(self, origin: Origin, code: str) -> None:
        """For the audit. Those that are alike are one."""
        source = origin.source.rpartition(":")[0] or origin.source
        key = (source, origin.actor, code)
        noted = self._noted.get(key)
        if noted is None and len(self._noted) >= MOST_NOTED:
            key = (OTHERS, OTHERS, code)
            noted = self._noted.get(key)
            origin = Origin(OTHERS, OTHERS)
        if noted is None:
            noted = Denied(origin, code, 0, self._wall())
        self._noted[key] = noted._replace(times=noted.times + 1)

    def drain(self) -> list[Denied]:
        """What was noted since the last time: the sources that failed most, and one for all others of a kind."""
        noted = sorted(self._noted.values(), key=lambda each: -each.times)
        self._noted = {}
        told, rest = noted[:MOST_TOLD], noted[MOST_TOLD:]
        others: dict[str, Denied] = {}
        for each in rest:
            before = others.get(each.code)
            origin = Origin(OTHERS, OTHERS)
            times = each.times + (before.times if before else 0)
            first = min(each.first, before.first) if before else each.first
            others[each.code] = Denied(origin, each.code, times, first)
        return [*told, *others.values()]


def network_of(address: str) -> str:
    """Of IPv6 the /64: whoever has one address there has them all."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
