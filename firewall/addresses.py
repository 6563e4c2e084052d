"""The address tables as they should be: which prefix holds which rule (datapath design, part 1).

Owns the choice of the winner where rules share a prefix, and which prefix lengths each list has.
Plans a change before anything is touched; knows no map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.address_index import AddressIndex, decoded, encode, key_columns
from firewall.datapath import Change, Edit, Entries, Entry, Key, Occupancy
from firewall.layout import C
from firewall.policy import Policy
from firewall.rule import VERSIONS, Rule

_SCOPES = C["ADDRESS_SCOPE_COUNT"]
_SPARED = Entry(C["RANK_NEVER_DROP"], 0)  # handle 0: no rule's
_Length = tuple[int, int, int]  # IP version, scope, prefix length
Counts = dict[_Length, int]


def address_keys(rule: Rule) -> list[Key]:
    """Where an addresses-only rule lives. Prefixes of a family that it excludes are nowhere."""
    side = C["SIDE_DESTINATION"] if rule.destinations else C["SIDE_SOURCE"]
    return [
        Key(prefix.version, hook << C["SCOPE_HOOK_BIT"] | side, prefix.length, prefix.address)
        for hook in rule.hooks
        for prefix in (rule.destinations or rule.sources)
        if prefix.version in VERSIONS[rule.family]
    ]


def _spared_keys(prefix: Prefix) -> list[Key]:
    """Who sends at ingress, who receives at egress."""
    sides = (C["HOOK_INGRESS"], C["SIDE_SOURCE"]), (C["HOOK_EGRESS"], C["SIDE_DESTINATION"])
    scopes = [hook << C["SCOPE_HOOK_BIT"] | side for hook, side in sides]
    return [Key(prefix.version, scope, prefix.length, prefix.address) for scope in scopes]


@dataclass(frozen=True)
class AddressPlan:
    """What a change does to the tables: entries by key after it, edits in the kernel. `come`, `gone`: as in Change;
    `counts`: of the entries after it, by length."""

    entries: dict[Key, list[Entry]]
    edits: list[Edit]
    come: list[Entries]
    gone: list[Entries]
    counts: Counts
    after: Occupancy

    def new_keys(self) -> dict[int, int]:
        """By IP version, how many keys come that were not there."""
        count = dict.fromkeys(BITS, 0)
        for edit in self.edits:
            count[edit.key.version] += edit.old is None
        for each in self.come:
            count[each.version] += len(each)
        return count


class AddressTables:
    """All entries of all rules: of each prefix the winner, and those that it beats."""

    def __init__(self) -> None:
        self._winners = {version: AddressIndex(version) for version in BITS}
        self._losers: dict[Key, list[Entry]] = {}
        self._counts: Counts = {}
        self.occupancy = Occupancy()

    def entries(self, key: Key) -> list[Entry]:
        winner = self.winner(key)
        return [] if winner is None else [winner, *self._losers.get(key, ())]

    def winner(self, key: Key) -> Entry | None:
        return self._winners[key.version].get(key)

    def winners(self, version: int) -> Entries:
        return self._winners[version].entries()

    def find(self, version: int, keys: npt.NDArray[Any]) -> Entries:
        """The winners of those of the encoded keys that have one."""
        return self._winners[version].find(keys)

    def sizes(self, plan: AddressPlan | None = None) -> dict[int, int]:
        """Entries by IP version, now or after a plan."""
        sizes = dict.fromkeys(BITS, 0)
        for (version, _, _), count in (self._counts if plan is None else plan.counts).items():
            sizes[version] += count
        return sizes

    def covering(self, version: int, address: int, length: int) -> list[Entry]:
        """Entries of every prefix that covers the given one, in any list."""
        bits = BITS[version]
        prefixes = [(each, address >> (bits - each) << (bits - each)) for each in range(length + 1)]
        keys = (Key(version, scope, each, masked) for scope in range(_SCOPES) for each, masked in prefixes)
        return [entry for key in keys for entry in self.entries(key)]

    def winners_at(self, keys: Sequence[Key]) -> list[tuple[Key, Entry]]:
        """Of the keys those that have an entry."""
        return [
            pair
            for version, index in self._winners.items()
            for pair in index.get_many([key for key in keys if key.version == version])
        ]

    def around(self, key: Key) -> list[tuple[Key, Entry]]:
        """The winners of prefixes that have every packet of a key, its own too: of its list, and where the other list
        of its hook has all addresses."""
        bits = BITS[key.version]
        lengths = self._lengths(key.version, key.scope) & ((2 << key.length) - 1)
        keys = [
            Key(key.version, key.scope, each, key.address >> (bits - each) << (bits - each))
            for each in range(lengths.bit_length())
            if lengths >> each & 1
        ]
        other_side = key.scope ^ C["SIDE_DESTINATION"]
        if self._lengths(key.version, other_side) & 1:
            keys.append(Key(key.version, other_side, 0, 0))
        return self._winners[key.version].get_many(keys) if keys else []

    def _lengths(self, version: int, scope: int) -> int:
        return (self.occupancy.lengths4 if version == 4 else self.occupancy.lengths6)[scope]

    def frozen(self) -> AddressTables:
        """A copy that no change reaches."""
        copy = AddressTables()
        copy._winners = {version: each.frozen() for version, each in self._winners.items()}
        copy._losers = dict(self._losers)
        copy._counts, copy.occupancy = self._counts, self.occupancy
        return copy

    def losers(self) -> dict[Key, list[Entry]]:
        """By key, those that the winner beats, in order. A copy."""
        return dict(self._losers)

    def plan(
        self,
        removed: Iterable[tuple[Rule, int]],
        added: Iterable[tuple[Rule, int]],
        arriving: Sequence[Entries] = (),
        leaving: Sequence[Entries] = (),
    ) -> AddressPlan:
        """Rules with their handles. The same rule may be removed and added (it changed). `arriving` and `leaving`:
        entries by the million, keys distinct."""
        entries: dict[Key, list[Entry]] = {}
        for rule, handle in removed:
            for key in address_keys(rule):
                entries.setdefault(key, self.entries(key)).remove(Entry(rule.rank, handle))
        for rule, handle in added:
            for key in address_keys(rule):
                entries.setdefault(key, self.entries(key)).append(Entry(rule.rank, handle))
        gone = [self._plan_leaving(each, entries) for each in leaving]
        come = [self._plan_arriving(each, entries) for each in arriving]
        return self._planned(entries, come, gone)

    def plan_spared(self, removed: Iterable[Prefix], added: Iterable[Prefix]) -> AddressPlan:
        """Prefixes of never_drop: entries of no rule, which beat every rule's."""
        entries: dict[Key, list[Entry]] = {}
        for prefix in removed:
            for key in _spared_keys(prefix):
                entries.setdefault(key, self.entries(key)).remove(_SPARED)
        for prefix in added:
            for key in _spared_keys(prefix):
                entries.setdefault(key, self.entries(key)).append(_SPARED)
        return self._planned(entries, [], [])

    def plan_many(self, arriving: Sequence[Entries]) -> AddressPlan:
        return self.plan((), (), arriving)

    def _plan_arriving(self, each: Entries, entries: dict[Key, list[Entry]]) -> Entries:
        """Those of prefixes that have no entry; the others are settled one by one, in `entries`."""
        known = self._winners[each.version].contains(each.keys) | _named(each, entries)
        for key, entry in decoded(each.only(known)):
            entries.setdefault(key, self.entries(key)).append(entry)
        return each.only(~known)

    def _plan_leaving(self, each: Entries, entries: dict[Key, list[Entry]]) -> Entries:
        """Those that are alone at their prefix; the others are settled one by one, in `entries`."""
        present = self._winners[each.version].find(each.keys)
        alone = (present.handles == each.handles) & ~_named(each, entries) & ~_named(each, self._losers)
        for key, entry in decoded(each.only(~alone)):
            entries.setdefault(key, self.entries(key)).remove(entry)
        return each.only(alone)

    def _planned(
        self, entries: dict[Key, list[Entry]], come: list[Entries], gone: list[Entries]
    ) -> AddressPlan:
        edits = []
        counts = self._counts.copy()
        for key, after in entries.items():
            after.sort()
            old, new = self.winner(key), after[0] if after else None
            if old != new:
                edits.append(Edit(key, old, new))
            if (old is None) != (new is None):
                length = key.version, key.scope, key.length
                counts[length] = counts.get(length, 0) + (1 if old is None else -1)
        for each in come:
            for length, count in _length_counts(each).items():
                counts[length] = counts.get(length, 0) + count
        for each in gone:
            for length, count in _length_counts(each).items():
                counts[length] = counts.get(length, 0) - count
        counts = {length: count for length, count in counts.items() if count}
        is_same = counts.keys() == self._counts.keys()
        occupancy = self.occupancy if is_same else _occupancy(counts)
        return AddressPlan(entries, edits, come, gone, counts, occupancy)

    def commit(self, plan: AddressPlan) -> None:
        for key, entries in plan.entries.items():
            self._winners[key.version].put(key, entries[0] if entries else None)
            if len(entries) > 1:
                self._losers[key] = entries[1:]
            else:
                self._losers.pop(key, None)
        for each in plan.gone:
            self._winners[each.version].remove(each.keys)
        for each in plan.come:
            self._winners[each.version].add(each)
        self._counts = plan.counts
        self.occupancy = plan.after

    def change(
        self,
        plan: AddressPlan,
        policy_before: Policy | None,
        policy: Policy | None,
        fresh_slots: tuple[int, ...] = (),
    ) -> Change:
        """The plan as what the kernel is asked for, from the tables as they are now."""
        return Change(
            plan.edits, self.occupancy, plan.after, policy_before, policy, plan.come, plan.gone, fresh_slots,
        )  # fmt: skip


class PlannedAddresses:
    """The tables as a plan makes them. Only looked at: nothing is copied."""

    def __init__(self, tables: AddressTables, plan: AddressPlan) -> None:
        self._tables = tables
        self._plan = plan

    @property
    def occupancy(self) -> Occupancy:
        return self._plan.after

    def entries(self, key: Key) -> list[Entry]:
        planned = self._plan.entries.get(key)
        if planned is not None:
            return planned
        if any(_entry_of(each, key) for each in self._plan.gone):
            return []
        arriving = [entry for each in self._plan.come if (entry := _entry_of(each, key)) is not None]
        return arriving or self._tables.entries(key)


def _entry_of(some: Entries, key: Key) -> Entry | None:
    """Of sorted entries."""
    if some.version != key.version or not len(some):
        return None
    wanted = np.array([encode(key)], some.keys.dtype)
    at = int(np.searchsorted(some.keys, wanted)[0])
    if at == len(some) or some.keys[at] != wanted[0]:
        return None
    return Entry(int(some.ranks[at]), int(some.handles[at]))


def _named(some: Entries, keys: Iterable[Key]) -> npt.NDArray[np.bool_]:
    """Which of the entries have one of these keys."""
    mine = [encode(key) for key in keys if key.version == some.version]
    return np.isin(some.keys, np.array(mine, some.keys.dtype))


def _length_counts(entries: Entries) -> Counts:
    scopes, lengths, _ = key_columns(entries.version, entries.keys)
    codes, counts = np.unique(scopes.astype(np.uint16) << np.uint16(8) | lengths, return_counts=True)
    return {
        (entries.version, code >> 8, code & 255): count
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
    }


def _occupancy(counts: Iterable[_Length]) -> Occupancy:
    lengths = {version: [0] * _SCOPES for version in BITS}
    for version, scope, length in counts:
        lengths[version][scope] |= 1 << length
    four, six = ((each[0], each[1], each[2], each[3]) for each in lengths.values())
    return Occupancy(four, six)
