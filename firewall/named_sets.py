"""The sets that rules of the policy name, and the counter of each of their entries.

Owns which entries have a counter, and which one. Of a set those count that lie in no other of its entries: where an
address lies in several the widest is counted for it, as in the address tables, for the others decide nothing. Values: a
change makes others. What counts there is the kernel's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.errors import table_full
from firewall.layout import C
from firewall.rule import Rule
from firewall.set_keys import NO_KEYS, SetKeys

Starts = npt.NDArray[np.generic]
Counters = npt.NDArray[np.uint32]
Naming = tuple[
    tuple[str, int], ...
]  # sets and the sides that a rule names them on, those of one set side by side
NO_COUNTERS: Counters = np.zeros(0, np.uint32)
MOST_ENTRIES = 1 << 32 - C["SET_LENGTH_BITS4"]


class Counting(NamedTuple):
    """Disjoint prefixes of one IP version, sorted: the first address of each (uint64, or 16 bytes), its length and its
    counter."""

    starts: Starts
    lengths: npt.NDArray[np.uint8]
    counters: Counters


NOTHING = {
    4: Counting(np.zeros(0, np.uint64), np.zeros(0, np.uint8), NO_COUNTERS),
    6: Counting(np.zeros(0, "S16"), np.zeros(0, np.uint8), NO_COUNTERS),
}


@dataclass(frozen=True)
class CountingSet:
    """`keys`: what is in the set, None where that is not known: of what an earlier process left in the maps."""

    keys: SetKeys | None
    four: Counting
    six: Counting

    def of(self, version: int) -> Counting:
        return self.four if version == 4 else self.six

    def counter(self, prefix: Prefix) -> int | None:
        """Of an entry; None where it lies in another."""
        mine = self.of(prefix.version)
        size = BITS[prefix.version] // 8
        first = prefix.address if prefix.version == 4 else prefix.address.to_bytes(size, "big")
        wanted = np.array([first], mine.starts.dtype)
        at = int(np.searchsorted(mine.starts, wanted)[0])
        if at == len(mine.starts) or mine.starts[at] != wanted[0] or mine.lengths[at] != prefix.length:
            return None
        return int(mine.counters[at])


def _unused(taken: int, sets: Iterable[CountingSet]) -> Counters:
    is_free = np.ones(taken, np.bool_)
    for each in sets:
        for version in BITS:
            is_free[each.of(version).counters] = False
    return np.flatnonzero(is_free).astype(np.uint32)


def before_start(known: Mapping[int, CountingSet]) -> NamedSets:
    """Nothing is named yet, but of the counters that are known some may go on: no other entry gets them."""
    used = [each.of(version).counters for each in known.values() for version in BITS]
    taken = max((int(each.max()) + 1 for each in used if len(each)), default=0)
    return NamedSets(taken=taken, free=_unused(taken, known.values()))


def hashed_name(name: str) -> int:
    """64 bits, by which the maps know a set."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class NamedSets:
    """`rules`: by the slot of a rule what it names. `taken`: counters from this one on were never used; `free`: of
    those before it the ones that nothing uses, in the order in which they are taken."""

    sets: Mapping[str, CountingSet] = field(default_factory=dict)
    rules: Mapping[int, Naming] = field(default_factory=dict)
    taken: int = 0
    free: Counters = field(default_factory=lambda: NO_COUNTERS)

    def changed(
        self,
        gone: Collection[int],
        come: Iterable[tuple[int, Rule]],
        contents: Mapping[str, SetKeys],
        known: Mapping[int, CountingSet] | None = None,
    ) -> tuple[NamedSets, Counters]:
        """As rules go (their slots) and come (slots with the rules), and the counters that must start at 0. `contents`:
        what is in each set; `known`: by hashed name, what counts already. Raises TableFull."""
        rules = {slot: naming for slot, naming in self.rules.items() if slot not in gone}
        rules |= {slot: naming for slot, rule in come if (naming := _naming(rule))}
        if not rules and not self.rules:
            return self, NO_COUNTERS
        wanted = {name for naming in rules.values() for name, _ in naming}
        sets: dict[str, CountingSet] = {}
        given = _Given(self.free, self.taken)
        for name in sorted(wanted):
            keys = contents.get(name, NO_KEYS)
            before = self.sets.get(name) or (known or {}).get(hashed_name(name))
            sets[name] = before if before is not None and before.keys is keys else given.matched(before, keys)
        for name, each in self.sets.items():
            if name not in wanted:
                given.freed += [each.four.counters, each.six.counters]
        made = NamedSets(sets, rules, given.taken, np.concatenate((given.free, *given.freed)))
        return made, np.concatenate((NO_COUNTERS, *given.fresh))

    def loaded(self) -> NamedSets:
        """After a start: what counted before and is not in a set now is free."""
        return NamedSets(self.sets, self.rules, self.taken, _unused(self.taken, self.sets.values()))

    @property
    def known(self) -> dict[int, CountingSet]:
        return {hashed_name(name): each for name, each in self.sets.items()}

    @cached_property
    def naming_count(self) -> int:
        return sum(map(len, self.rules.values()))

    @cached_property
    def sizes(self) -> dict[int, int]:
        """Elements of the maps, by IP version: the prefixes, and what leads to them."""
        four, six = ([len(each.of(version).starts) for each in self.sets.values()] for version in BITS)
        return {
            4: sum(each + index_size(each) for each in four),
            6: sum(each + -(-each // C["SET_STEP"]) for each in six),
        }


def index_size(prefixes: int) -> int:
    """Elements of the index of a set's IPv4 prefixes: a power of two."""
    return 1 << max(0, prefixes // C["SET_INDEX_SHARE"]).bit_length()


@dataclass
class _Given:
    """Counters as they are given out, first those that were free the longest."""

    free: Counters
    taken: int
    freed: list[Counters] = field(default_factory=list)
    fresh: list[Counters] = field(default_factory=list)

    def matched(self, before: CountingSet | None, keys: SetKeys) -> CountingSet:
        """A set's entries, each with the counter that it had."""
        four, six = (self._matched(before.of(v) if before else NOTHING[v], keys, v) for v in (4, 6))
        return CountingSet(keys, four, six)

    def _matched(self, before: Counting, keys: SetKeys, version: int) -> Counting:
        ranges = keys.ranges4 if version == 4 else keys.ranges6
        counters = np.zeros(len(ranges.starts), np.uint32)
        at, is_there = _places(before, ranges.starts, ranges.lengths)
        counters[is_there] = before.counters[at[is_there]]
        fresh = self._next(len(counters) - int(np.count_nonzero(is_there)))
        counters[~is_there] = fresh
        stays = np.zeros(len(before.counters), np.bool_)
        stays[at[is_there]] = True
        self.fresh.append(fresh)
        self.freed.append(before.counters[~stays])
        return Counting(ranges.starts, ranges.lengths, counters)

    def _next(self, count: int) -> Counters:
        given, self.free = self.free[:count], self.free[count:]
        more = count - len(given)
        if self.taken + more > MOST_ENTRIES:
            raise table_full(
                "entry_counters", MOST_ENTRIES, self.taken + more, "bpf.max_addresses", "entries of sets"
            )
        new = np.arange(self.taken, self.taken + more, dtype=np.uint32)
        self.taken += more
        return np.concatenate((given, new))


def _places(
    before: Counting, starts: Starts, lengths: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each prefix stood, and whether it did. What is the same at both ends costs no search."""
    at, is_there = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.bool_)
    had, most = len(before.starts), min(len(before.starts), len(starts))
    head = _same(before, starts[:most], lengths[:most], 0)
    tail = _same_from_behind(before, starts, lengths, most - head)
    at[:head], is_there[:head] = np.arange(head), True
    at[len(starts) - tail :], is_there[len(starts) - tail :] = np.arange(had - tail, had), True
    middle = slice(head, len(starts) - tail)
    old = before.starts[head : had - tail]
    if len(old):
        found = np.searchsorted(old, starts[middle]).clip(max=len(old) - 1)
        at[middle] = found + head
        is_there[middle] = (old[found] == starts[middle]) & (before.lengths[found + head] == lengths[middle])
    return at, is_there


def _same(before: Counting, starts: Starts, lengths: npt.NDArray[np.uint8], at: int) -> int:
    """How many from the first on are the same as those from `at` on."""
    count = len(starts)
    differs = (before.starts[at : at + count] != starts) | (before.lengths[at : at + count] != lengths)
    return int(np.argmax(differs)) if differs.any() else count


def _same_from_behind(before: Counting, starts: Starts, lengths: npt.NDArray[np.uint8], most: int) -> int:
    if not most:
        return 0
    had, have = len(before.starts), len(starts)
    differs = (before.starts[had - most :] != starts[have - most :]) | (
        before.lengths[had - most :] != lengths[have - most :]
    )
    return int(np.argmax(differs[::-1])) if differs.any() else most


def _naming(rule: Rule) -> Naming:
    named = {(name, C["SIDE_SOURCE"]) for name in rule.source_sets}
    named |= {(name, C["SIDE_DESTINATION"]) for name in rule.destination_sets}
    return tuple(sorted(named))
