"""What the firewall tells about sets: which there are, who names them, what is in them and what that counted.

Owns these answers. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from firewall.address import BITS, Prefix
from firewall.address_index import key_columns
from firewall.address_layers import Place
from firewall.address_list import PrefixColumns
from firewall.datapath import Key
from firewall.errors import InvalidInput, NotFound, Problem
from firewall.hits import NO_HITS, Hits
from firewall.layout import C
from firewall.named_sets import CountingSet
from firewall.reads import Reads
from firewall.rule import SET_MARK, Rule
from firewall.set_keys import NO_KEYS
from firewall.set_store import StoredEntry, StoredSet
from firewall.view import EntryQuery, EntryView, SetView

MOST_RULES = 100  # named beside a set


class SetReads(Reads):
    """Every method may be called from any thread."""

    def sets(self, offset: int = 0, limit: int | None = None) -> list[SetView]:
        """By name; all of them, or a page."""
        with self._lock:
            stored = self._set_store.sets()[offset:]
            return [self._set_view(each) for each in stored[:limit]]

    def set(self, name: str) -> SetView:
        with self._lock:
            return self._set_view(self._stored_set(name))

    def set_sizes(self) -> dict[str, int]:
        """How many entries each has, now or, while a change holds the lock, before it."""
        return {name: len(keys) for name, keys in self._ruleset.sets.items()}

    def prefixes_of_set(self, name: str) -> list[PrefixColumns]:
        """Of all its entries."""
        with self._lock:
            self._stored_set(name)
            keys = self._ruleset.sets.get(name, NO_KEYS)
        columns = ((version, *key_columns(version, keys.of(version))) for version in BITS)
        return [PrefixColumns(version, lengths, addresses) for version, _, lengths, addresses in columns]

    def entries(self, name: str, query: EntryQuery, offset: int, limit: int) -> tuple[list[EntryView], int]:
        """A page in order of addresses, and how many there are in all. No change waits while they are looked for."""
        number, now = self._stored_set(name).number, self._clock()
        found = self._set_store.page(number, query, offset, limit, now)
        total = None if query == EntryQuery() else self._set_store.count(number, query, now)
        with self._lock:
            if total is None:
                total = len(self._ruleset.sets.get(name, NO_KEYS))
            hits = self._entry_hits(name, [each.prefix for each in found])
        return [_view(each, hits) for each in found], total

    def all_entries(self, name: str) -> Iterator[StoredEntry]:
        """In order of addresses, as they were at one moment."""
        return self._set_store.all(self._stored_set(name).number, self._clock())

    def _entry_hits(self, name: str, prefixes: Sequence[Prefix]) -> dict[Prefix, Hits] | None:
        """Of the rules that name the set, None where none does."""
        counting = self._ruleset.policy.named.sets.get(name)
        of_policy = {} if counting is None else self._policy_hits(counting, prefixes)
        of_addresses = self._address_hits(name, prefixes)
        if counting is None or of_addresses is None:
            return of_policy if of_addresses is None and counting is not None else of_addresses
        return {
            prefix: of_policy.get(prefix, NO_HITS).plus(of_addresses.get(prefix, NO_HITS))
            for prefix in prefixes
        }

    def _policy_hits(self, counting: CountingSet, prefixes: Sequence[Prefix]) -> dict[Prefix, Hits]:
        """Of rules with more fields. Entries that lie in others of the set have no counter."""
        counters = {
            prefix: counter for prefix in prefixes if (counter := counting.counter(prefix)) is not None
        }
        hits = self._kernel.hits_of_entries(np.array(list(counters.values()), np.uint32))
        return dict(zip(counters, hits, strict=True))

    def _address_hits(self, name: str, prefixes: Sequence[Prefix]) -> dict[Prefix, Hits] | None:
        """Of the address rules that name the set, None where none does."""
        layers = self._ruleset.addresses.layers
        mine = layers.handles_of(name)
        if not mine:
            return None
        keys = [
            Key(prefix.version, scope, prefix.length, prefix.address)
            for prefix in prefixes
            for scope in range(C["ADDRESS_SCOPE_COUNT"])
            if layers.get(Place(prefix.version, scope, name)) is not None
        ]
        won = [key for key, entry in self._ruleset.addresses.winners_at(keys) if entry.handle in mine]
        hits: dict[Prefix, Hits] = {}
        for key, each in zip(won, self._kernel.address_hits(won) if won else (), strict=True):
            prefix = Prefix(key.version, key.address, key.length)
            hits[prefix] = hits.get(prefix, NO_HITS).plus(each)
        return hits

    def _stored_set(self, name: str) -> StoredSet:
        stored = self._set_store.by_name(name)
        if stored is None:
            raise NotFound(f"there is no set {name!r}", f"make it: PUT /v1/sets/{name}", code="set_not_found")
        return stored

    def _set_view(self, stored: StoredSet) -> SetView:
        entries = len(self._ruleset.sets.get(stored.name, NO_KEYS))
        users = tuple(self._users_of(stored.name)[:MOST_RULES])
        return SetView(
            stored.name, stored.description, stored.source, entries, users, stored.created_at, stored.updated_at,
        )  # fmt: skip

    def _users_of(self, name: str) -> list[str]:
        """Ids of the rules that name a set, the oldest first; disabled ones too."""
        records = self._store.by_handles(sorted(self._ruleset.users_of(name)))
        records += [each for each in self._store.disabled() if name in each.rule.sets]
        return [each.rule.id for each in sorted(records, key=lambda each: each.handle)]

    def _check_sets(self, rules: Sequence[Rule], pointer: str | None = None) -> None:
        """Raises InvalidInput where a rule names a set that is not there. `pointer`: of the list that the rules are."""
        problems = []
        for index, rule in enumerate(rules):
            where = "" if pointer is None else f"{pointer}/{index}"
            sides = (
                ("sources", rule.sources, rule.source_sets),
                (
                    "destinations",
                    rule.destinations,
                    rule.destination_sets,
                ),
            )
            for field, prefixes, names in sides:
                problems += [
                    Problem(f"{where}/{field}/{len(prefixes) + at}", f"there is no set {name!r}")
                    for at, name in enumerate(names)
                    if name not in self._ruleset.sets
                ]
        if problems:
            name = problems[0].detail.removeprefix("there is no set ").strip("'")
            raise InvalidInput(
                f"{problems[0].pointer}: {problems[0].detail}",
                f"make it first: PUT /v1/sets/{name}, or `ebpf-fw set create {name}`; {SET_MARK} before a name"
                " asks for a set",
                tuple(problems),
                "unknown_set",
            )


def _view(each: StoredEntry, hits: dict[Prefix, Hits] | None) -> EntryView:
    mine = None if hits is None else hits.get(each.prefix, NO_HITS)
    return EntryView(
        each.prefix,
        each.expires_at,
        each.comment,
        each.created_at,
        each.created_at if each.updated_at is None else each.updated_at,
        None if mine is None else mine.packets,
        None if mine is None else mine.bytes,
        None if mine is None else mine.last_hit or None,
    )
