"""The sets that rules of the address tables name: layers over the prefixes that rules name themselves.

Owns which rules stand behind a prefix by way of a set. A layer is one set in one list: its keys are the set's own, and
of the rules that name it the first wins at each of them, so that what loses costs nothing a prefix. Values: a change
makes other layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from firewall.address import BITS
from firewall.address_entries import Entry, Key
from firewall.address_index import NO_CODE, Codes, Keys, code_columns, codes_of, encode, no_entries, place_of
from firewall.layout import C
from firewall.rule import VERSIONS, Rule
from firewall.set_keys import NO_KEYS, SetDelta, SetKeys, distinct, is_in, rows_of_scope, scoped, unscoped

Sets = Mapping[str, SetKeys]


class Place(NamedTuple):
    """A set in one list of one IP version."""

    version: int
    scope: int
    name: str


class Layer(NamedTuple):
    """`keys`: with scope 0. `entries`: of the rules that name the set, the first wins."""

    keys: Keys
    entries: tuple[Entry, ...]

    @property
    def winner(self) -> Entry:
        return self.entries[0]


def places_of(rule: Rule) -> Iterator[Place]:
    """Where the sets of an addresses-only rule stand."""
    side = C["SIDE_DESTINATION"] if rule.asks_destinations else C["SIDE_SOURCE"]
    for name in rule.sets:
        for hook in rule.hooks:
            for version in VERSIONS[rule.family]:
                yield Place(version, hook << C["SCOPE_HOOK_BIT"] | side, name)


class Layers:
    """Not changed once it is made."""

    def __init__(self, by_place: Mapping[Place, Layer] | None = None) -> None:
        self._by_place = dict(by_place or {})
        self._lists: dict[tuple[int, int], list[Layer]] = defaultdict(list)
        for place, layer in self._by_place.items():
            self._lists[place.version, place.scope].append(layer)

    def changed(
        self,
        removed: Iterable[tuple[Rule, int]],
        added: Iterable[tuple[Rule, int]],
        sets: Sets,
        deltas: Mapping[str, SetDelta],
    ) -> Layers:
        """Rules with their handles. `sets`: as they will be. The same object where nothing changes."""
        entries: dict[Place, list[Entry]] = {}

        def at(place: Place) -> list[Entry]:
            layer = self._by_place.get(place)
            return entries.setdefault(place, list(layer.entries) if layer else [])

        for rule, handle in removed:
            for place in places_of(rule):
                at(place).remove(Entry(rule.rank, handle))
        for rule, handle in added:
            for place in places_of(rule):
                at(place).append(Entry(rule.rank, handle))
        for place in self._by_place:
            if place.name in deltas:
                at(place)
        if not entries:
            return self
        after = dict(self._by_place)
        for place, mine in entries.items():
            if mine:
                keys = sets.get(place.name, NO_KEYS).of(place.version)
                after[place] = Layer(keys, tuple(sorted(mine)))
            else:
                after.pop(place, None)
        return Layers(after)

    def places(self, version: int) -> Iterator[tuple[Place, Layer]]:
        return ((place, layer) for place, layer in self._by_place.items() if place.version == version)

    def has_rules_of(self, other: Layers) -> bool:
        """Whether the same rules name the same sets."""
        if self is other:
            return True
        mine, theirs = self._by_place, other._by_place
        return mine.keys() == theirs.keys() and all(
            layer.entries == theirs[place].entries for place, layer in mine.items()
        )

    def get(self, place: Place) -> Layer | None:
        return self._by_place.get(place)

    def handles_of(self, name: str) -> set[int]:
        """Of the rules that name a set."""
        return {
            entry.handle
            for place, layer in self._by_place.items()
            if place.name == name
            for entry in layer.entries
        }

    @property
    def handles(self) -> set[int]:
        return {entry.handle for layer in self._by_place.values() for entry in layer.entries}

    @property
    def ranks(self) -> set[int]:
        return {entry.rank for layer in self._by_place.values() for entry in layer.entries}

    # -- what stands at prefixes

    def entries(self, key: Key) -> list[Entry]:
        """Of one prefix, in no order."""
        return [entry for layer in self._at(key) for entry in layer.entries]

    def best(self, key: Key) -> Entry | None:
        return min((layer.winner for layer in self._at(key)), default=None)

    def _at(self, key: Key) -> Iterator[Layer]:
        layers = self._lists.get((key.version, key.scope))
        if layers:
            plain = encode(key._replace(scope=0))
            yield from (each for each in layers if place_of(each.keys, plain) is not None)

    def codes(self, version: int, keys: Keys) -> Codes:
        """Of sorted keys the entry that wins at each, NO_CODE where no layer has it."""
        found = np.full(len(keys), NO_CODE)
        for (of_version, scope), layers in self._lists.items():
            if of_version != version:
                continue
            rows = rows_of_scope(version, keys, scope)
            plain = unscoped(version, keys[rows])
            for layer in layers:
                rank, handle = (np.array([each]) for each in layer.winner)
                code = codes_of(rank, handle)[0]
                mine = np.where(is_in(plain, layer.keys), code, NO_CODE)
                found[rows] = np.minimum(found[rows], mine)
        return found

    def best_of_many(self, keys: Iterable[Key]) -> dict[Key, Entry]:
        """Those of the keys that a layer has, with the entry that wins there."""
        found: dict[Key, Entry] = {}
        if not self._by_place:
            return found
        for version in BITS:
            mine = [key for key in keys if key.version == version]
            encoded = np.array([encode(key) for key in mine], no_entries(version).keys.dtype)
            order = np.argsort(encoded, kind="stable")
            codes = self.codes(version, encoded[order])
            hit = np.flatnonzero(codes != NO_CODE)
            ranks, handles = code_columns(codes[hit])
            rows = zip(order[hit].tolist(), ranks.tolist(), handles.tolist(), strict=True)
            found |= {mine[row]: Entry(rank, handle) for row, rank, handle in rows}
        return found


def touched_keys(version: int, before: Layers, after: Layers, deltas: Mapping[str, SetDelta]) -> Keys:
    """Sorted keys at which another entry of layers may win than before."""
    parts: list[Keys] = [no_entries(version).keys]
    places = {place for place, _ in (*before.places(version), *after.places(version))}
    for place in places:
        for keys in _touched(place, before.get(place), after.get(place), deltas):
            parts.append(scoped(version, keys, place.scope))
    return parts[-1] if len(parts) == 2 else distinct(np.concatenate(parts))


def _touched(
    place: Place, before: Layer | None, after: Layer | None, deltas: Mapping[str, SetDelta]
) -> Sequence[Keys]:
    if before is None or after is None or before.winner != after.winner:
        same = before is not None and after is not None and before.keys is after.keys
        return [each.keys for each in (before, None if same else after) if each is not None]
    if before.keys is after.keys:
        return []
    delta = deltas[place.name]
    return [delta.come.of(place.version), delta.gone.of(place.version)]
