"""The address tables as they should be: which prefix holds which rule (datapath design, part 1).

Owns the choice of the winner where rules share a prefix, and which prefix lengths each list has.
Plans a change before anything is touched; knows no map. What rules name by sets stands in layers
(firewall/address_layers.py): nothing is kept for each prefix of a set but the entry that wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.address_index import (
    NO_CODE,
    AddressIndex,
    Codes,
    Keys,
    code_columns,
    codes_of,
    decoded,
    encode,
    key_columns,
    no_entries,
    place_of,
)
from firewall.address_layers import Layers, Sets, touched_keys
from firewall.datapath import Change, Edit, Entries, Entry, Key, Occupancy
from firewall.layout import C
from firewall.named_sets import NO_COUNTERS, Counters
from firewall.policy import Policy
from firewall.rule import VERSIONS, Rule
from firewall.set_keys import SetDelta

_SCOPES = C["ADDRESS_SCOPE_COUNT"]
_SPARED = Entry(C["RANK_NEVER_DROP"], 0)  # handle 0: no rule's
_FEW = 256  # entries that are planned one by one
_Length = tuple[int, int, int]  # IP version, scope, prefix length
Counts = dict[_Length, int]


def address_keys(rule: Rule) -> list[Key]:
    """Where the prefixes of an addresses-only rule live. Those of a family that it excludes are nowhere."""
    side = C["SIDE_DESTINATION"] if rule.asks_destinations else C["SIDE_SOURCE"]
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
class LayersPlan:
    """What a change does to the layers: them after it, and what that does to prefixes that no rule names itself.
    `changed`: entries before and after. `hidden`, `revealed`: entries of rules that name a prefix themselves, alone,
    and are beaten by a layer from then on, or no more."""

    after: Layers
    come: tuple[Entries, ...] = ()
    gone: tuple[Entries, ...] = ()
    changed: tuple[tuple[Entries, Entries], ...] = ()
    hidden: tuple[Entries, ...] = ()
    revealed: tuple[Entries, ...] = ()


@dataclass(frozen=True)
class AddressPlan:
    """What a change does to the tables: entries of rules that name a prefix themselves by key after it, and of layers
    the best there; edits in the kernel. `come`, `gone`: as in Change; `joining`, `parting`: by the million, those that
    come or go at prefixes that layers have too; `counts`: of the entries after it, by length."""

    entries: dict[Key, list[Entry]]
    layered: dict[Key, Entry]
    edits: list[Edit]
    come: list[Entries]
    gone: list[Entries]
    joining: list[Entries]
    parting: list[Entries]
    layers: LayersPlan
    counts: Counts
    after: Occupancy

    def new_keys(self) -> dict[int, int]:
        """By IP version, how many keys come that were not there."""
        count = dict.fromkeys(BITS, 0)
        for edit in self.edits:
            count[edit.key.version] += edit.old is None
        for each in (*self.come, *self.layers.come):
            count[each.version] += len(each)
        return count


class AddressTables:
    """All entries of all rules: of each prefix the winner, and those that it beats. Where the winner is a layer's, the
    best of the rules that name the prefix themselves is in `_hidden`; `_losers`: those behind their best."""

    def __init__(self) -> None:
        self._winners = {version: AddressIndex(version) for version in BITS}
        self._hidden = {version: AddressIndex(version) for version in BITS}
        self._losers: dict[Key, list[Entry]] = {}
        self._counts: Counts = {}
        self.layers = Layers()
        self.occupancy = Occupancy()

    def entries(self, key: Key) -> list[Entry]:
        """In winning order, also those of layers."""
        return _merged(self.singles(key), self.layers.entries(key))

    def singles(self, key: Key) -> list[Entry]:
        """Those of rules that name the prefix themselves, in order."""
        best, lost = self.winner(key), self._losers.get(key, ())
        if best is not None and best == self.layers.best(key):
            best = self._hidden[key.version].get(key)
        return [] if best is None else [best, *lost]

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
        copy._hidden = {version: each.frozen() for version, each in self._hidden.items()}
        copy._losers = dict(self._losers)
        copy.layers = self.layers
        copy._counts, copy.occupancy = self._counts, self.occupancy
        return copy

    def hidden(self, version: int) -> Entries:
        """Those that a layer beats and that are the first of the rules that name the prefix themselves."""
        return self._hidden[version].entries()

    def singles_of(self, version: int, keys: Keys) -> Codes:
        """Of each of the keys the first of the rules that name it themselves, or NO_CODE."""
        won = self._winners[version].codes(keys)
        if not any(self.layers.places(version)):
            return won
        order = np.argsort(keys, kind="stable")
        layered = np.full(len(keys), NO_CODE)
        layered[order] = self.layers.codes(version, keys[order])
        return np.where(won == layered, self._hidden[version].codes(keys), won)

    def losers(self) -> dict[Key, list[Entry]]:
        """By key, those that another that names the prefix beats, in order; not those of layers. A copy."""
        return dict(self._losers)

    def won_by(self, handles: Iterable[int]) -> list[Entries]:
        """The entries that are some rules'."""
        wanted = np.fromiter(handles, np.uint32)
        found = (each.entries() for each in self._winners.values())
        return [each.only(np.isin(each.handles, wanted)) for each in found]

    def plan(
        self,
        removed: Iterable[tuple[Rule, int]],
        added: Iterable[tuple[Rule, int]],
        arriving: Sequence[Entries] = (),
        leaving: Sequence[Entries] = (),
        sets: Sets | None = None,
        deltas: Mapping[str, SetDelta] | None = None,
    ) -> AddressPlan:
        """Rules with their handles. The same rule may be removed and added (it changed). `arriving` and `leaving`:
        entries by the million, keys distinct. `sets`: by name, as they will be; `deltas`: of those that change."""
        removed, added = list(removed), list(added)
        entries: dict[Key, list[Entry]] = {}
        for rule, handle in removed:
            for key in address_keys(rule):
                entries.setdefault(key, self.singles(key)).remove(Entry(rule.rank, handle))
        for rule, handle in added:
            for key in address_keys(rule):
                entries.setdefault(key, self.singles(key)).append(Entry(rule.rank, handle))
        layers = self.layers.changed(removed, added, sets or {}, deltas or {})
        gone, parting = _both(self._plan_leaving(each, entries, layers) for each in leaving)
        come, joining = _both(self._plan_arriving(each, entries, layers) for each in arriving)
        planned = self._plan_layers(layers, entries, deltas or {})
        return self._planned(
            entries, come, gone, self._beside_layers(planned, joining, parting), joining, parting
        )

    def plan_spared(self, removed: Iterable[Prefix], added: Iterable[Prefix]) -> AddressPlan:
        """Prefixes of never_drop: entries of no rule, which beat every rule's."""
        entries: dict[Key, list[Entry]] = {}
        for prefix in removed:
            for key in _spared_keys(prefix):
                entries.setdefault(key, self.singles(key)).remove(_SPARED)
        for prefix in added:
            for key in _spared_keys(prefix):
                entries.setdefault(key, self.singles(key)).append(_SPARED)
        return self._planned(entries, [], [], LayersPlan(self.layers), [], [])

    def plan_many(self, arriving: Sequence[Entries]) -> AddressPlan:
        return self.plan((), (), arriving)

    def _plan_arriving(
        self, each: Entries, entries: dict[Key, list[Entry]], layers: Layers
    ) -> tuple[Entries, Entries]:
        """Those of prefixes that have no entry, and those of prefixes that layers alone have; the others are settled
        one by one, in `entries`."""
        won = self._winners[each.version].codes(each.keys)
        named, in_layers = _named(each.version, each.keys, entries), self._in_layers(each, layers)
        comes = (won == NO_CODE) & ~named & ~in_layers
        joins = np.zeros(len(each), np.bool_)
        if layers is self.layers:
            joins = in_layers & ~named & (self.singles_of(each.version, each.keys) == NO_CODE)
        for key, entry in decoded(each.only(~comes & ~joins)):
            entries.setdefault(key, self.singles(key)).append(entry)
        return each.only(comes), each.only(joins)

    def _plan_leaving(
        self, each: Entries, entries: dict[Key, list[Entry]], layers: Layers
    ) -> tuple[Entries, Entries]:
        """Those that are alone at their prefix, and those that are alone with layers there; the others are settled one
        by one, in `entries`."""
        version, keys = each.version, each.keys
        named = _named(version, keys, entries) | _named(version, keys, self._losers)
        is_first = self.singles_of(version, keys) == codes_of(each.ranks, each.handles)
        in_layers = self._in_layers(each, layers)
        goes = is_first & ~named & ~in_layers
        parts = is_first & ~named & in_layers if layers is self.layers else np.zeros(len(each), np.bool_)
        for key, entry in decoded(each.only(~goes & ~parts)):
            entries.setdefault(key, self.singles(key)).remove(entry)
        return each.only(goes), each.only(parts)

    def _beside_layers(
        self, planned: LayersPlan, joining: Sequence[Entries], parting: Sequence[Entries]
    ) -> LayersPlan:
        """With those at whose prefixes layers stand as before: they beat them, or are beaten."""
        if not joining and not parting:
            return planned
        changed, hidden, revealed = list(planned.changed), list(planned.hidden), list(planned.revealed)
        for some, comes in (*((each, True) for each in joining), *((each, False) for each in parting)):
            mine, layered = codes_of(some.ranks, some.handles), self.layers.codes(some.version, some.keys)
            wins = mine < layered
            (hidden if comes else revealed).append(some.only(~wins))
            pair = _entries(some.version, some.keys, layered, wins), some.only(wins)
            changed.append(pair if comes else pair[::-1])
        return replace(
            planned,
            changed=tuple(pair for pair in changed if len(pair[0])),
            hidden=_some(hidden),
            revealed=_some(revealed),
        )

    def _in_layers(self, each: Entries, after: Layers) -> npt.NDArray[np.bool_]:
        now, then = self.layers.codes(each.version, each.keys), after.codes(each.version, each.keys)
        return np.asarray((now != NO_CODE) | (then != NO_CODE))

    def _plan_layers(
        self, after: Layers, entries: dict[Key, list[Entry]], deltas: Mapping[str, SetDelta]
    ) -> LayersPlan:
        """Prefixes that several rules name themselves, and few others, are settled one by one, in `entries`."""
        if after is self.layers:
            return LayersPlan(after)
        parts = [
            self._layer_columns(version, keys, after, entries)
            for version in BITS
            if len(keys := touched_keys(version, self.layers, after, deltas))
        ]
        come, gone, before, then, hidden, revealed = zip(*parts, strict=True) if parts else [()] * 6
        return LayersPlan(
            after,
            _some(come),
            _some(gone),
            tuple(pair for pair in zip(before, then, strict=True) if len(pair[0])),
            _some(hidden),
            _some(revealed),
        )

    def _layer_columns(
        self, version: int, keys: Keys, after: Layers, entries: dict[Key, list[Entry]]
    ) -> tuple[Entries, Entries, Entries, Entries, Entries, Entries]:
        """What comes, goes, changes (before and after), is hidden, is revealed."""
        won, before = self._winners[version].codes(keys), self.layers.codes(version, keys)
        is_hidden = (won == before) & (won != NO_CODE)
        singles = np.where(is_hidden, self._hidden[version].codes(keys), won)
        named = _named(version, keys, self._losers) | _named(version, keys, entries)
        if len(keys) <= _FEW:
            named[:] = True
        for (key, entry), code in zip(
            decoded(_entries(version, keys, singles, named)), singles[named].tolist(), strict=True
        ):
            if key not in entries:
                entries[key] = [] if code == NO_CODE else [entry, *self._losers.get(key, ())]
        if named.any():
            keys, won, singles, is_hidden = keys[~named], won[~named], singles[~named], is_hidden[~named]
        of_layer = after.codes(version, keys)
        best = np.minimum(of_layer, singles)  # NO_CODE is the largest
        was, will = won != NO_CODE, best != NO_CODE
        both = was & will & (won != best)
        is_single = singles != NO_CODE
        hides = is_single & (best == of_layer)
        return (
            _entries(version, keys, best, will & ~was),
            _entries(version, keys, won, was & ~will),
            _entries(version, keys, won, both),
            _entries(version, keys, best, both),
            _entries(version, keys, singles, hides & ~is_hidden),
            _entries(version, keys, singles, is_single & is_hidden & ~hides),
        )

    def _planned(
        self,
        entries: dict[Key, list[Entry]],
        come: list[Entries],
        gone: list[Entries],
        layers: LayersPlan,
        joining: list[Entries],
        parting: list[Entries],
    ) -> AddressPlan:
        edits = []
        counts = self._counts.copy()
        layered = layers.after.best_of_many(entries)
        for key, after in entries.items():
            after.sort()
            old, new = self.winner(key), _best(after, layered.get(key))
            if old != new:
                edits.append(Edit(key, old, new))
            if (old is None) != (new is None):
                length = key.version, key.scope, key.length
                counts[length] = counts.get(length, 0) + (1 if old is None else -1)
        for each in (*come, *layers.come):
            for length, count in _length_counts(each).items():
                counts[length] = counts.get(length, 0) + count
        for each in (*gone, *layers.gone):
            for length, count in _length_counts(each).items():
                counts[length] = counts.get(length, 0) - count
        counts = {length: count for length, count in counts.items() if count}
        is_same = counts.keys() == self._counts.keys()
        occupancy = self.occupancy if is_same else _occupancy(counts)
        return AddressPlan(entries, layered, edits, come, gone, joining, parting, layers, counts, occupancy)

    def commit(self, plan: AddressPlan) -> None:
        for key, entries in plan.entries.items():
            of_layer = plan.layered.get(key)
            winner = _best(entries, of_layer)
            self._winners[key.version].put(key, winner)
            hidden = self._hidden[key.version]
            if winner is not None and winner == of_layer:
                hidden.put(key, entries[0] if entries else None)
            elif not hidden.is_empty:
                hidden.put(key, None)
            if len(entries) > 1:
                self._losers[key] = entries[1:]
            else:
                self._losers.pop(key, None)
        for each in (*plan.gone, *plan.layers.gone):
            self._winners[each.version].remove(each.keys)
        for each in (*plan.come, *plan.layers.come):
            self._winners[each.version].add(each)
        for _, each in plan.layers.changed:
            self._winners[each.version].set(each)
        for each in plan.layers.revealed:
            self._hidden[each.version].remove(each.keys)
        for each in plan.layers.hidden:
            self._hidden[each.version].add(each)
        self.layers = plan.layers.after
        self._counts = plan.counts
        self.occupancy = plan.after

    def change(
        self,
        plan: AddressPlan,
        policy_before: Policy | None,
        policy: Policy | None,
        fresh_slots: tuple[int, ...] = (),
        at_once: bool = True,
        fresh_entries: Counters | None = None,
    ) -> Change:
        """The plan as what the kernel is asked for, from the tables as they are now."""
        return Change(
            plan.edits,
            self.occupancy,
            plan.after,
            policy_before,
            policy,
            (*plan.come, *plan.layers.come),
            (*plan.gone, *plan.layers.gone),
            plan.layers.changed,
            fresh_slots,
            at_once,
            NO_COUNTERS if fresh_entries is None else fresh_entries,
        )


class PlannedAddresses:
    """The tables as a plan makes them. Only looked at: nothing is copied."""

    def __init__(self, tables: AddressTables, plan: AddressPlan) -> None:
        self._tables = tables
        self._plan = plan

    @property
    def occupancy(self) -> Occupancy:
        return self._plan.after

    def entries(self, key: Key) -> list[Entry]:
        return _merged(self._singles(key), self._plan.layers.after.entries(key))

    def _singles(self, key: Key) -> list[Entry]:
        planned = self._plan.entries.get(key)
        if planned is not None:
            return planned
        gone, come = (*self._plan.gone, *self._plan.parting), (*self._plan.come, *self._plan.joining)
        if any(_entry_of(each, key) for each in gone):
            return []
        arriving = [entry for each in come if (entry := _entry_of(each, key)) is not None]
        return arriving or self._tables.singles(key)


def _both(pairs: Iterable[tuple[Entries, Entries]]) -> tuple[list[Entries], list[Entries]]:
    made = list(pairs)
    return [one for one, _ in made], [other for _, other in made]


def _some(parts: Iterable[Entries]) -> tuple[Entries, ...]:
    return tuple(each for each in parts if len(each))


def _best(singles: Sequence[Entry], of_layer: Entry | None) -> Entry | None:
    """Of equal ones the layer's: then the others all stand among the losers."""
    if of_layer is None:
        return singles[0] if singles else None
    return min(of_layer, singles[0]) if singles else of_layer


def _merged(singles: list[Entry], layered: Sequence[Entry]) -> list[Entry]:
    return sorted({*singles, *layered}) if layered else singles


def _entries(version: int, keys: Keys, codes: Codes, mask: npt.NDArray[np.bool_]) -> Entries:
    if not mask.any():
        return no_entries(version)
    return Entries(version, keys[mask], *code_columns(codes[mask]))


def _entry_of(some: Entries, key: Key) -> Entry | None:
    """Of sorted entries."""
    at = place_of(some.keys, encode(key)) if some.version == key.version else None
    return None if at is None else Entry(int(some.ranks[at]), int(some.handles[at]))


def _named(version: int, some: Keys, keys: Iterable[Key]) -> npt.NDArray[np.bool_]:
    """Which of the encoded keys are among these keys."""
    mine = [encode(key) for key in keys if key.version == version]
    return np.isin(some, np.array(mine, some.dtype))


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
