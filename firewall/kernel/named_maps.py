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
from firewall.named_sets import Counters, Counting, CountingSet, NamedSets, hashed_name, index_size

_GENERATIONS = C["GENERATION_COUNT"]
_LENGTH_BITS = {version: C[f"SET_LENGTH_BITS{version}"] for version in BITS}


def write_named(maps: PinnedMaps, generation: int, named: NamedSets) -> None:
    spans = _part(maps, "policy_sets_of", generation)[0]
    spans[:] = 0
    if not named.rules:
        return
    places = _write_prefixes4(maps, generation, named), _write_prefixes6(maps, generation, named)
    rows, at = _part(maps, "policy_named", generation)
    count = 0
    for slot, naming in named.rules.items():
        spans[slot] = (at + count, len(naming))
        for name, side in naming:
            row = rows[count : count + 1]
            row["name"], row["side"] = hashed_name(name), side
            for field, value in (*places[0][name].items(), *places[1][name].items()):
                row[field] = value
            count += 1


def _part(maps: PinnedMaps, name: str, generation: int) -> tuple[Records, int]:
    """A generation's elements, and the number of the first."""
    rows = maps.arrays[name]
    size = len(rows) // _GENERATIONS
    return rows[generation * size : (generation + 1) * size], generation * size


def _write_prefixes4(maps: PinnedMaps, generation: int, named: NamedSets) -> dict[str, dict[str, object]]:
    """What struct named_set says of them, by set."""
    rows, base = _part(maps, "policy_set4", generation)
    at = 0
    places: dict[str, dict[str, object]] = {}
    for name, each in named.sets.items():
        starts, lengths, counters = each.four
        first, past = at, at + len(starts)
        rows["start"][first:past] = starts
        rows["counter"][first:past] = counters << np.uint32(_LENGTH_BITS[4]) | lengths
        begins, counts = _index(starts)
        at = past + len(begins)
        rows["start"][past:at], rows["counter"][past:at] = base + first + begins, counts
        bits = len(begins).bit_length() - 1
        places[name] = {"prefixes4": (base + first, len(starts)), "index4": base + past, "bits": bits}
    return places


def _index(starts: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """By the leading bits of an address, the first prefix that it can lie in and how many: one that starts before
    the first such address is among them."""
    size = index_size(len(starts))
    buckets = (starts.astype(np.uint64) >> np.uint64(33 - size.bit_length())).astype(np.int64)
    past = np.cumsum(np.bincount(buckets, minlength=size))
    begins = np.append(0, past[:-1] - 1).clip(min=0)
    return begins, past - begins


def _write_prefixes6(maps: PinnedMaps, generation: int, named: NamedSets) -> dict[str, dict[str, object]]:
    rows, base = _part(maps, "policy_set6", generation)
    at = 0
    places: dict[str, dict[str, object]] = {}
    for name, each in named.sets.items():
        starts, lengths, counters = each.six
        halves = starts.view(">u8").reshape(-1, 2)
        first, past = at, at + len(starts)
        rows["start"][first:past] = halves
        rows["counter"][first:past] = counters.astype(np.uint64) << np.uint64(_LENGTH_BITS[6]) | lengths
        steps = np.arange(0, len(starts), C["SET_STEP"])
        at = past + len(steps)
        rows["start"][past:at], rows["counter"][past:at] = halves[steps], base + first + steps
        places[name] = {"prefixes6": (base + first, len(starts)), "steps6": (base + past, len(steps))}
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
    if len(counters):
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
