"""Writes the sets that rules of the policy name into one generation of the maps, and reads what is there; what their
entries have counted.

Owns these maps' bytes (bpf/layout.h, struct named_set).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from firewall.address import BITS
from firewall.kernel.bpf import Records
from firewall.kernel.maps import PinnedMaps
from firewall.layout import C
from firewall.named_sets import Counters, Counting, CountingSet, NamedSets, hashed_name

_GENERATIONS = C["GENERATION_COUNT"]
_LENGTH_BITS = {version: C[f"SET_LENGTH_BITS{version}"] for version in BITS}


def write_named(maps: PinnedMaps, generation: int, named: NamedSets) -> None:
    spans = _part(maps, "policy_sets_of", generation)[0]
    spans[:] = 0
    if not named.rules:
        return
    places = {version: _write_prefixes(maps, generation, named, version) for version in BITS}
    rows, at = _part(maps, "policy_named", generation)
    count = 0
    for slot, naming in named.rules.items():
        spans[slot] = (at + count, len(naming))
        for name, side in naming:
            row = rows[count : count + 1]
            row["name"], row["side"] = hashed_name(name), side
            for version in BITS:
                row[f"prefixes{version}"] = places[version][name]
            count += 1


def _part(maps: PinnedMaps, name: str, generation: int) -> tuple[Records, int]:
    """A generation's elements, and the number of the first."""
    rows = maps.arrays[name]
    size = len(rows) // _GENERATIONS
    return rows[generation * size : (generation + 1) * size], generation * size


def _write_prefixes(
    maps: PinnedMaps, generation: int, named: NamedSets, version: int
) -> dict[str, tuple[int, int]]:
    """First and count, by set."""
    rows, base = _part(maps, f"policy_set{version}", generation)
    at, places = 0, {}
    for name, each in named.sets.items():
        starts, lengths, counters = each.of(version)
        mine = rows[at : at + len(starts)]
        if version == 4:
            mine["start"] = starts
            mine["counter"] = counters << np.uint32(_LENGTH_BITS[4]) | lengths
        else:
            mine["start"] = starts.view(">u8").reshape(-1, 2)
            mine["counter"] = counters.astype(np.uint64) << np.uint64(_LENGTH_BITS[6]) | lengths
        places[name] = (base + at, len(starts))
        at += len(starts)
    return places


def read_named(maps: PinnedMaps, generation: int) -> dict[int, CountingSet]:
    """By hashed name, the sets that a generation's rules name."""
    spans = _part(maps, "policy_sets_of", generation)[0]
    found: dict[int, CountingSet] = {}
    for first, count in spans[spans["count"] != 0].tolist():
        for row in maps.arrays["policy_named"][first : first + count]:
            if int(row["name"]) not in found:
                four, six = (_read_prefixes(maps, row, version) for version in (4, 6))
                found[int(row["name"])] = CountingSet(None, four, six)
    return found


def _read_prefixes(maps: PinnedMaps, named: np.void, version: int) -> Counting:
    first, count = named[f"prefixes{version}"].tolist()
    rows = maps.arrays[f"policy_set{version}"][first : first + count]
    bits = _LENGTH_BITS[version]
    lengths = (rows["counter"] & ((1 << bits) - 1)).astype(np.uint8)
    counters = (rows["counter"] >> bits).astype(np.uint32)
    if version == 4:
        return Counting(rows["start"].astype(np.uint64), lengths, counters)
    starts = np.ascontiguousarray(rows["start"]).astype(">u8").view("S16").reshape(-1)
    return Counting(starts, lengths, counters)


def read_counters(maps: PinnedMaps, counters: Counters) -> Records:
    return maps.arrays["entry_counters"][counters]


def clear_counters(maps: PinnedMaps, counters: Counters) -> None:
    """Of entries that no packet is counted for now."""
    maps.arrays["entry_counters"][counters] = 0


def carried(old: PinnedMaps, new: PinnedMaps, before: Records | None = None) -> Records:
    """Puts what the old maps have counted, from what they had `before` on, into larger new ones; what they have now."""
    now: Records = old.arrays["entry_counters"].copy()
    into = new.arrays["entry_counters"][: len(now)]
    if before is None:
        into[:] = now
        return now
    rows: npt.NDArray[np.int64] = np.flatnonzero(now["packets"] != before["packets"])
    for field in ("packets", "bytes"):
        into[field][rows] += now[field][rows] - before[field][rows]
    into["last_hit"][rows] = np.maximum(into["last_hit"][rows], now["last_hit"][rows])
    return now
