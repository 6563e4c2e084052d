"""Sets in the compiled rules: keys and their ranges, layers beside rules that name prefixes, plans of changes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from itertools import pairwise

import numpy as np
import pytest

from firewall.address import Prefix, parse_prefix
from firewall.address_index import decoded
from firewall.address_layers import places_of
from firewall.addresses import AddressTables, PlannedAddresses, address_keys
from firewall.datapath import Entries, Entry, Key
from firewall.matching import matches
from firewall.packet import Packet
from firewall.rule import Rule, rank_of, rule_from_fields
from firewall.set_entries import SetEntry, entry_columns
from firewall.set_keys import NO_KEYS, SetKeys, between, set_keys

ADDRESSES = ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "255.255.255.255", "0.0.0.0"]
ADDRESSES6 = ["2001:db8::", "2001:db8::1", "2001:db8::2", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::"]


def keys_of(prefixes: Iterable[str]) -> SetKeys:
    columns = entry_columns(SetEntry(parse_prefix(each)) for each in prefixes)
    return set_keys(each.prefixes for each in columns)


def random_prefix(rng: random.Random) -> str:
    address = rng.choice(ADDRESSES if rng.random() < 0.7 else ADDRESSES6)
    bits = 32 if "." in address else 128
    length = rng.choice((bits, bits - 1, bits - 2, 8, 0))
    return str(ip_network(f"{address}/{length}", strict=False))


# -- keys


@pytest.mark.parametrize("seed", range(30))
def test_differences_and_membership_are_those_of_python_sets(seed: int) -> None:
    rng = random.Random(seed)
    one, other = ({random_prefix(rng) for _ in range(rng.randint(0, 12))} for _ in range(2))
    change = between(keys_of(one), keys_of(other))
    for found, expected in ((change.come, other - one), (change.gone, one - other)):
        assert all(np.array_equal(found.of(v), keys_of(expected).of(v)) for v in (4, 6))
    again = change.before.changed(change.come, change.gone)
    assert all(np.array_equal(again.of(v), change.after.of(v)) for v in (4, 6))
    assert all(keys_of(one).has(parse_prefix(each)) == (each in one) for each in one | other)


@pytest.mark.parametrize("seed", range(30))
def test_ranges_cover_the_same_addresses_once(seed: int) -> None:
    rng = random.Random(seed)
    prefixes = [ip_network(random_prefix(rng)) for _ in range(rng.randint(0, 8))]
    keys = keys_of(map(str, prefixes))
    for version, addresses, ranges in ((4, ADDRESSES, keys.ranges4), (6, ADDRESSES6, keys.ranges6)):
        size = 4 if version == 4 else 16
        found = []
        for start, end in zip(ranges.starts.tolist(), ranges.ends.tolist(), strict=True):
            first = start if version == 4 else int.from_bytes(start.ljust(16, b"\0"), "big")
            past = end if version == 4 else int.from_bytes(end.ljust(16, b"\0"), "big")
            found.append((first, past or 1 << 8 * size))
        assert all(one[1] <= two[0] for one, two in pairwise(found))
        for text in addresses:
            number = int(ip_address(text))
            is_in = any(ip_address(text) in each for each in prefixes if each.version == version)
            assert any(first <= number < past for first, past in found) == is_in
            assert keys.matches(version, number) == is_in


# -- layers


class World:
    """Rules and sets, planned as changes, beside a naive copy."""

    def __init__(self) -> None:
        self.tables = AddressTables()
        self.sets: dict[str, SetKeys] = dict.fromkeys("abc", NO_KEYS)
        self.content: dict[str, set[str]] = {name: set() for name in "abc"}
        self.rules: dict[int, Rule] = {}
        self.kernel: dict[Key, Entry] = {}
        self.lists: list[Entries] = []  # rules of one prefix each, imported

    def change(
        self,
        removed: dict[int, Rule],
        added: dict[int, Rule],
        content: dict[str, set[str]],
        arriving: list[Entries],
        leaving: list[Entries],
    ) -> None:
        deltas = {name: between(self.sets[name], keys_of(each)) for name, each in content.items()}
        self.sets |= {name: each.after for name, each in deltas.items()}
        plan = self.tables.plan(
            [(rule, handle) for handle, rule in removed.items()],
            [(rule, handle) for handle, rule in added.items()],
            arriving,
            leaving,
            sets=self.sets,
            deltas=deltas,
        )
        change = self.tables.change(plan, None, None)
        undone = dict(self.kernel)
        self._apply(change.edits, change.come, change.gone, change.changed)
        after = dict(self.kernel)
        back = change.inverse()
        self._apply(back.edits, back.come, back.gone, back.changed)
        assert self.kernel == undone
        self.kernel = after
        planned = PlannedAddresses(self.tables, plan)
        self.content |= content
        for handle in removed:
            del self.rules[handle]
        self.rules |= added
        self.lists = [each for each in self.lists if not any(each is gone for gone in leaving)] + arriving
        for key, entries in self.naive().items():
            assert planned.entries(key) == entries
        self.tables.commit(plan)

    def _apply(
        self,
        edits: Iterable[tuple[Key, Entry | None, Entry | None]],
        come: Iterable[Entries],
        gone: Iterable[Entries],
        changed: Iterable[tuple[Entries, Entries]],
    ) -> None:
        named = []
        for key, old, new in edits:
            named.append(key)
            assert self.kernel.get(key) == old
            self.kernel.pop(key, None)
            if new is not None:
                self.kernel[key] = new
        for each in come:
            for key, entry in decoded(each):
                named.append(key)
                assert key not in self.kernel
                self.kernel[key] = entry
        for each in gone:
            for key, entry in decoded(each):
                named.append(key)
                assert self.kernel.pop(key) == entry
        for before, after in changed:
            for (key, old), (same, new) in zip(decoded(before), decoded(after), strict=True):
                named.append(key)
                assert key == same and self.kernel[key] == old != new
                self.kernel[key] = new
        assert len(named) == len(set(named))

    def naive(self) -> dict[Key, list[Entry]]:
        found: dict[Key, set[Entry]] = {}
        for handle, rule in self.rules.items():
            keys = address_keys(rule)
            for place in places_of(rule):
                keys += [
                    Key(prefix.version, place.scope, prefix.length, prefix.address)
                    for prefix in map(parse_prefix, self.content[place.name])
                    if prefix.version == place.version
                ]
            for key in keys:
                found.setdefault(key, set()).add(Entry(rule.rank, handle))
        for each in self.lists:
            for key, entry in decoded(each):
                found.setdefault(key, set()).add(entry)
        return {key: sorted(entries) for key, entries in found.items()}

    def check(self) -> None:
        expected = self.naive()
        assert self.kernel == {key: entries[0] for key, entries in expected.items()}
        for key, entries in expected.items():
            assert self.tables.entries(key) == entries
        sizes = self.tables.sizes()
        assert sizes == {v: sum(key.version == v for key in expected) for v in (4, 6)}


def random_rule(rng: random.Random) -> Rule:
    side = rng.choice(("sources", "destinations"))
    addresses = [random_prefix(rng) for _ in range(rng.choice((0, 0, 1, 2)))]
    addresses += [f"@{name}" for name in rng.sample("abc", rng.choice((0, 1, 1, 2)))]
    fields = {
        side: addresses or ["@a"],
        "action": rng.choice(("drop", "allow")),
        "priority": rng.choice((1, 2)),
        "direction": rng.choice(("ingress", "egress", "both")),
        "family": rng.choice(("any", "any", "ipv4", "ipv6")),
    }
    return rule_from_fields(fields, "r", 0.0)


def random_list(rng: random.Random, first_handle: int) -> Entries:
    keys = keys_of({random_prefix(rng) for _ in range(rng.randint(1, 8))}).four
    handles = np.arange(first_handle, first_handle + len(keys), dtype=np.uint32)
    ranks = np.full(len(keys), rank_of(rng.choice((1, 2)), rng.choice(("drop", "allow"))), np.uint32)
    return Entries(4, keys, ranks, handles)


@pytest.mark.parametrize("few", [0, 256])
@pytest.mark.parametrize("seed", range(40))
def test_tables_hold_what_a_slow_reader_of_rules_and_sets_finds(
    seed: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firewall.addresses._FEW", few)
    rng, world, handle = random.Random(seed), World(), 1
    for turn in range(1, 26):
        removed = dict(
            rng.sample(sorted(world.rules.items()), min(len(world.rules), rng.choice((0, 0, 1, 2))))
        )
        added = {}
        for old in list(removed):
            if rng.random() < 0.5:  # it changes
                added[old] = random_rule(rng)
        for _ in range(rng.choice((0, 1, 1))):
            added[handle], handle = random_rule(rng), handle + 1
        content = {
            name: {random_prefix(rng) for _ in range(rng.randint(0, 6))}
            for name in rng.sample("abc", rng.choice((0, 0, 1, 2)))
        }
        arriving = [random_list(rng, 1000 * turn)] if rng.random() < 0.4 else []
        goes = world.lists and not arriving and rng.random() < 0.5  # no change imports and takes back
        leaving = [rng.choice(world.lists)] if goes else []
        world.change(removed, added, content, arriving, leaving)
        world.check()


def test_a_list_that_is_imported_over_a_set_goes_again() -> None:
    tables = AddressTables()
    keys = keys_of(["10.0.0.1", "10.0.0.2"])
    rule = rule_from_fields({"sources": ["@a"]}, "r", 0.0)
    tables.commit(tables.plan((), [(rule, 1)], sets={"a": keys}))
    listed = Entries(4, keys.four, np.full(2, rule.rank - 2, np.uint32), np.array([7, 8], np.uint32))
    tables.commit(tables.plan((), (), [listed]))
    key = Key(4, 0, 32, 0x0A000001)
    assert tables.entries(key) == [Entry(rule.rank - 2, 7), Entry(rule.rank, 1)]
    tables.commit(tables.plan((), (), (), [listed]))
    assert tables.entries(key) == [Entry(rule.rank, 1)] and tables.winner(key) == Entry(rule.rank, 1)


# -- rules


def test_a_rule_writes_its_sets_behind_its_prefixes() -> None:
    rule = rule_from_fields({"sources": ["@b", "10.0.0.0/8", "@a"], "destinations": "@c"}, "r", 0.0)
    assert rule.fields()["sources"] == ["10.0.0.0/8", "@b", "@a"]
    assert rule.sets == ("b", "a", "c") and not rule.is_addresses_only
    assert rule_from_fields(rule.fields(), "r", 0.0) == rule


def test_a_rule_of_an_empty_set_matches_nothing() -> None:
    rule = rule_from_fields({"sources": ["@a"], "protocols": ["tcp"]}, "r", 0.0)
    packet = Packet(0, None, 4, 1, 2, 6)
    assert not matches(rule, packet, {"a": NO_KEYS})
    assert matches(rule, packet, {"a": keys_of(["0.0.0.1"])})


def test_the_last_of_equal_entries_counts() -> None:
    from firewall.entry_columns import wanted

    prefix = Prefix(4, 1, 32)
    entries = [SetEntry(prefix, 5.0, "one"), SetEntry(Prefix(4, 2, 32)), SetEntry(prefix, 7.0, "two")]
    found = wanted(entry_columns(entries))
    ((version, keys, times, comments),) = found.rows()
    assert (version, len(keys), list(times), list(comments)) == (4, 2, [7.0, None], ["two", None])
