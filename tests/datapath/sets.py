"""Sets of the loaded firewall: filled at random, and what their entries have counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from firewall.address import parse_prefix
from firewall.set_entries import EntryColumns, SetEntry, entry_columns
from firewall.view import EntryQuery
from tests import oracle
from tests.datapath.loaded import Loaded
from tests.random_rules import prefix

Content = Mapping[str, Iterable[str]]
NAMES = ("a", "b", "c")
EntryHits = dict[tuple[str, str], tuple[int, int]]  # packets and bytes by set and entry


def columns(prefixes: Iterable[str]) -> list[EntryColumns]:
    return entry_columns(SetEntry(parse_prefix(each)) for each in prefixes)


def put(firewall: Loaded, content: Content) -> None:
    for name, prefixes in content.items():
        firewall.enforcer.put_set(name)
        firewall.enforcer.replace_entries(name, columns(prefixes))


def forget(firewall: Loaded) -> None:
    """All rules, and all sets."""
    firewall.rules()
    for each in firewall.enforcer.sets():
        firewall.enforcer.delete_set(each.name)


def random_content(rng: random.Random) -> dict[str, list[str]]:
    return {name: sorted({prefix(rng) for _ in range(rng.choice((0, 1, 5, 20)))}) for name in NAMES}


def of_different_ranks(rng: random.Random, rules: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Else any of equals may count."""
    priorities = rng.sample(range(1000), 100)
    return [{**rule, "priority": priority} for rule, priority in zip(rules, priorities, strict=False)]


def have_different_ranks(rules: Sequence[Mapping[str, Any]]) -> bool:
    return len({oracle.rank(rule) for rule in rules}) == len(rules)


def packets_of(firewall: Loaded, name: str) -> dict[str, int | None]:
    entries, _ = firewall.enforcer.entries(name, EntryQuery(), 0, 1000)
    return {str(entry.prefix): entry.packets for entry in entries}


def counted(firewall: Loaded) -> EntryHits:
    """Of those that were hit."""
    found = {}
    for each in firewall.enforcer.sets():
        entries, total = firewall.enforcer.entries(each.name, EntryQuery(), 0, 100_000)
        assert len(entries) == total
        for entry in entries:
            if entry.packets:
                assert entry.last_hit and entry.bytes is not None
                found[each.name, str(entry.prefix)] = (entry.packets, entry.bytes)
    return found


class Expected:
    """What entries should have counted."""

    def __init__(self) -> None:
        self._packets: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()

    def count(self, places: Iterable[tuple[str, str, str | None]], size: int) -> None:
        for name, entry, _ in places:
            self._packets[name, canonical(entry)] += 1
            self._bytes[name, canonical(entry)] += size

    @property
    def hits(self) -> EntryHits:
        return {place: (count, self._bytes[place]) for place, count in self._packets.items()}


def canonical(entry: str) -> str:
    network = oracle.network(entry)
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
