"""Packets and bytes of interfaces: slots for them, and what was counted there.

Owns interface_slots and counters (bpf/layout.h, struct interface_slot).
"""

from __future__ import annotations

import numpy as np

from firewall.hits import InterfaceHits
from firewall.kernel.maps import PinnedMaps
from firewall.layout import COUNTER, C

_PER_INTERFACE = C["COUNTERS_PER_INTERFACE"]


class InterfaceCounters:
    def __init__(self, maps: PinnedMaps, cpus: int) -> None:
        self._rows = maps.arrays["interface_slots"]
        self._table = maps["counters"]
        self._cpus = cpus

    def _row(self, ifindex: int) -> int | None:
        """Where the interface's slot stands, None where it has none."""
        first = ifindex % C["SLOT_ROWS"]
        found = np.flatnonzero(self._rows["ifindex"][first : first + C["SLOT_PROBES"]] == ifindex)
        return first + int(found[0]) if len(found) else None

    def add(self, ifindex: int) -> bool:
        """Gives an interface a slot; False where there is no room, and then its packets are not counted."""
        if self._row(ifindex) is not None:
            return True
        first = ifindex % C["SLOT_ROWS"]
        free_rows = np.flatnonzero(self._rows["slot"][first : first + C["SLOT_PROBES"]] == 0)
        free_slots = set(range(1, C["INTERFACES_MAX"] + 1)) - set(self._rows["slot"].tolist())
        if not len(free_rows) or not free_slots:
            return False
        slot, row = min(free_slots), first + int(free_rows[0])
        self._clear(slot)
        self._rows["slot"][row] = slot
        self._rows["ifindex"][row] = ifindex
        return True

    def remove(self, ifindex: int) -> list[InterfaceHits]:
        """What had been counted."""
        row = self._row(ifindex)
        if row is None:
            return []
        hits = self._hits(int(self._rows["slot"][row]))
        self._rows["ifindex"][row] = 0
        self._rows["slot"][row] = 0
        return hits

    def hits(self) -> dict[int, list[InterfaceHits]]:
        """By ifindex."""
        rows = self._rows[self._rows["slot"] != 0]
        return {int(row["ifindex"]): self._hits(int(row["slot"])) for row in rows}

    def _keys(self, slot: int) -> list[bytes]:
        first = slot * _PER_INTERFACE
        return [index.to_bytes(4, "little") for index in range(first, first + _PER_INTERFACE)]

    def _clear(self, slot: int) -> None:
        for key in self._keys(slot):
            self._table.update(key, bytes(COUNTER.itemsize * self._cpus))

    def _hits(self, slot: int) -> list[InterfaceHits]:
        hits = []
        for index, key in enumerate(self._keys(slot)):
            raw = self._table.lookup(key, COUNTER.itemsize * self._cpus)
            by_cpu = np.frombuffer(raw or b"", COUNTER)
            packets, size = int(by_cpu["packets"].sum()), int(by_cpu["bytes"].sum())
            if packets:
                rest, reason = divmod(index, C["REASON_CAPACITY"])
                hook, verdict = divmod(rest, C["VERDICT_COUNT"])
                hits.append(InterfaceHits(hook, verdict, reason, packets, size))
        return hits
