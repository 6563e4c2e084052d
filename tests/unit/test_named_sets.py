"""Which entries of sets have counters, and that each keeps its own."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pytest

from firewall import named_sets
from firewall.address import BITS, Prefix, parse_prefix
from firewall.address_list import PrefixColumns
from firewall.errors import TableFull
from firewall.kernel.linux import _grown
from firewall.named_sets import NamedSets, before_start
from firewall.rule import Rule, rule_from_fields
from firewall.set_keys import SetKeys, set_keys


def keys(*prefixes: str) -> SetKeys:
    columns = []
    for version in BITS:
        mine = [each for each in map(parse_prefix, prefixes) if each.version == version]
        raw = b"".join(each.address.to_bytes(BITS[version] // 8, "big") for each in mine)
        addresses = np.frombuffer(raw, np.uint8).reshape(-1, BITS[version] // 8)
        columns.append(PrefixColumns(version, np.array([each.length for each in mine], np.uint8), addresses))
    return set_keys(columns)


def rule(*sources: str, **fields: object) -> Rule:
    return rule_from_fields({"sources": list(sources), "protocols": ["tcp"], **fields}, "r", 0.0)


def counters(named: NamedSets, name: str = "a") -> dict[str, int]:
    """By entry."""
    mine, found = named.sets[name], {}
    for version in BITS:
        starts, lengths, numbers = mine.of(version)
        for start, length, number in zip(starts.tolist(), lengths.tolist(), numbers.tolist(), strict=True):
            address = start if version == 4 else int.from_bytes(start.ljust(16, b"\0"), "big")
            prefix = Prefix(version, address, length)
            assert mine.counter(prefix) == number
            found[str(prefix)] = number
    return found


def test_entries_that_lie_in_others_have_no_counter() -> None:
    contents = {
        "a": keys("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "11.0.0.0", "2001:db8::/32", "2001:db8::1")
    }
    named, fresh = NamedSets().changed((), [(7, rule("@a"))], contents)
    assert sorted(counters(named)) == ["10.0.0.0/8", "11.0.0.0", "2001:db8::/32"]
    assert sorted(counters(named).values()) == sorted(fresh.tolist()) == [0, 1, 2]
    assert named.sets["a"].counter(parse_prefix("10.1.2.3")) is None
    assert named.sets["a"].counter(parse_prefix("10.0.0.0/16")) is None
    assert named.rules == {7: (("a", 0),)}


def test_a_set_counts_while_some_rule_names_it() -> None:
    contents = {"a": keys("10.0.0.1"), "b": keys("10.0.0.2")}
    both = [(0, rule("@a", "@b", destinations=["@a"])), (1, rule("@a"))]
    named, _ = NamedSets().changed((), both, contents)
    assert named.rules[0] == (("a", 0), ("a", 1), ("b", 0)) and named.naming_count == 4
    before = counters(named)
    named, fresh = named.changed({0}, (), contents)
    assert list(named.sets) == ["a"] and counters(named) == before and not len(fresh)
    named, _ = named.changed({1}, [(1, rule("10.0.0.1"))], contents)
    assert not named.sets and not named.rules


def test_without_sets_nothing_is_made() -> None:
    named = NamedSets()
    assert named.changed({1}, [(1, rule("10.0.0.1"))], {})[0] is named


@pytest.mark.parametrize("seed", range(20))
def test_property_each_entry_keeps_its_counter_and_no_two_share_one(seed: int) -> None:
    rng = random.Random(seed)
    contents: Mapping[str, SetKeys] = {"a": keys(), "b": keys()}
    named = NamedSets()
    rules = {0: rule("@a"), 1: rule("@b"), 2: rule("@a", "@b")}
    present: dict[int, Rule] = {}
    for _ in range(60):
        before, used = named, {name: counters(named, name) for name in named.sets}
        gone = {slot for slot in present if rng.random() < 0.2}
        come = {slot: rules[slot] for slot in rules if rng.random() < 0.3}
        present = {slot: each for slot, each in present.items() if slot not in gone} | come
        if rng.random() < 0.8:
            texts = {f"10.0.0.{rng.randrange(40)}" for _ in range(rng.randrange(30))}
            texts |= {f"2001:db8::{rng.randrange(9)}" for _ in range(rng.randrange(4))}
            if rng.random() < 0.2:
                texts.add("10.0.0.0/28")
            contents = {**contents, rng.choice(("a", "b")): keys(*texts)}
        named, fresh = named.changed(gone | come.keys(), come.items(), contents)
        assert set(named.sets) == {name for each in present.values() for name in each.sets}
        now = {name: counters(named, name) for name in named.sets}
        every = [number for mine in now.values() for number in mine.values()]
        assert len(every) == len(set(every)) and set(every).isdisjoint(named.free.tolist())
        assert sorted([*every, *named.free.tolist()]) == list(range(named.taken))
        kept = {(name, entry) for name, mine in used.items() for entry in mine if entry in now.get(name, {})}
        assert all(now[name][entry] == used[name][entry] for name, entry in kept)
        new = {now[name][entry] for name in now for entry in now[name] if (name, entry) not in kept}
        assert new == set(fresh.tolist())
        # Of those that went none is given again at once: packets of before may still count there.
        assert new.isdisjoint(number for mine in used.values() for number in mine.values()), before


def test_after_a_start_what_counted_goes_on_and_the_rest_is_free() -> None:
    contents = {"a": keys("10.0.0.1", "10.0.0.2", "10.0.0.3"), "b": keys("10.0.0.9")}
    before, _ = NamedSets().changed((), [(0, rule("@a", "@b"))], contents)
    started = before_start(before.known)
    after = {"a": keys("10.0.0.2", "10.0.0.4")}
    named, fresh = started.changed((), [(3, rule("@a"))], after, before.known)
    assert counters(named)["10.0.0.2"] == counters(before)["10.0.0.2"]
    assert fresh.tolist() == [4]
    loaded = named.loaded()
    assert sorted(loaded.free.tolist()) == sorted({0, 1, 2, 3} - {counters(before)["10.0.0.2"]})


def test_more_entries_than_counters_can_be_numbered_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_sets, "MOST_ENTRIES", 2)
    with pytest.raises(TableFull):
        NamedSets().changed((), [(0, rule("@a"))], {"a": keys("10.0.0.1", "10.0.0.3", "10.0.0.5")})


def test_small_tables_grow_by_much_and_large_ones_by_little() -> None:
    assert _grown(16384, 16384) == 16384
    assert _grown(16384, 16385) == 65536
    assert _grown(1024, 60_000) == 65536
    assert _grown(16384, 2_000_000) == 2_500_000
    assert _grown(2_500_000, 2_500_001) == 3_125_001
    assert _grown(2_500_000, 10) == 2_500_000
