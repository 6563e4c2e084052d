"""What entries of sets count: those of rules with more fields too, in programs of their own behind the verdict."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest

from firewall.view import EntryQuery
from tests import oracle
from tests.datapath.contents import assert_exact
from tests.datapath.frames import tcp
from tests.datapath.loaded import Loaded
from tests.datapath.test_property import World, random_arrivals
from tests.datapath.test_sets import NAMES, columns, put, random_content
from tests.random_rules import random_rules

Counted = dict[tuple[str, str], tuple[int, int]]


@pytest.fixture(autouse=True)
def no_sets(firewall: Loaded) -> Iterator[None]:
    yield
    firewall.configure()
    firewall.rules()
    for each in firewall.enforcer.sets():
        firewall.enforcer.delete_set(each.name)


def counted(firewall: Loaded) -> Counted:
    """Packets and bytes by set and entry, of those that were hit."""
    found = {}
    for each in firewall.enforcer.sets():
        entries, total = firewall.enforcer.entries(each.name, EntryQuery(), 0, 100_000)
        assert len(entries) == total
        for entry in entries:
            if entry.packets:
                assert entry.last_hit and entry.bytes is not None
                found[each.name, str(entry.prefix)] = (entry.packets, entry.bytes)
    return found


def packets(firewall: Loaded, name: str) -> dict[str, int | None]:
    entries, _ = firewall.enforcer.entries(name, EntryQuery(), 0, 1000)
    return {str(entry.prefix): entry.packets for entry in entries}


def of_different_ranks(rng: random.Random, rules: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Else any of equals may count."""
    priorities = rng.sample(range(1000), 100)
    return [{**rule, "priority": priority} for rule, priority in zip(rules, priorities, strict=False)]


@pytest.mark.parametrize("seed", range(6))
def test_property_entries_count_what_the_oracle_says(firewall: Loaded, seed: int) -> None:
    rng, world = random.Random(seed), World({}, "pretended-interface-0")
    put(firewall, dict.fromkeys(NAMES, ()))
    total = 0
    for _ in range(6):
        firewall.rules()
        content = random_content(rng)
        put(firewall, content)
        rules = of_different_ranks(rng, random_rules(rng, rng.choice((5, 12, 30)), sets=NAMES))
        firewall.rules(*rules)
        assert_exact(firewall)
        expected: Counter[tuple[str, str]] = Counter()
        sizes: Counter[tuple[str, str]] = Counter()
        for arrival in random_arrivals(rng, 120):
            expanded = [oracle.with_entries(rule, content) for rule in rules]
            judgement = world.judge(expanded, arrival)
            firewall.judge(arrival.frame, arrival.hook, arrival.link)
            for name, entry, _ in oracle.counted_entries(
                rules, content, arrival.frame, judgement, arrival.link
            ):
                expected[name, canonical(entry)] += 1
                sizes[name, canonical(entry)] += len(arrival.frame)
        wanted = {place: (count, sizes[place]) for place, count in expected.items()}
        assert counted(firewall) == wanted, (seed, rules, content)
        total += len(wanted)
    assert total > 5


def canonical(entry: str) -> str:
    network = oracle.network(entry)
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


RULE: dict[str, Any] = {"id": "port", "sources": ["@a"], "protocols": ["tcp"], "destination_ports": ["22"]}


def test_an_entry_counts_what_its_rule_decides_and_nothing_else(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.1", "10.0.0.2", "2001:db8::/32"]})
    firewall.rules(RULE)
    assert packets(firewall, "a") == {"10.0.0.1": 0, "10.0.0.2": 0, "2001:db8::/32": 0}
    frame = tcp("10.0.0.1", dport=22)
    assert firewall.judge(frame).verdict == "drop"
    firewall.judge(frame)
    firewall.judge(tcp("10.0.0.1", dport=23))  # of no rule
    firewall.judge(tcp("10.0.0.3", dport=22))  # of no entry
    firewall.judge(tcp("2001:db8::7", dport=22))
    assert packets(firewall, "a") == {"10.0.0.1": 2, "10.0.0.2": 0, "2001:db8::/32": 1}
    (entry, _, _), _ = firewall.enforcer.entries("a", EntryQuery(), 0, 10)
    assert entry.bytes == 2 * len(frame) and entry.last_hit is not None
    assert firewall.hits("port")[0] == 3


def test_where_entries_lie_in_each_other_the_widest_counts_in_every_kind_of_rule(firewall: Loaded) -> None:
    for fields in ({}, {"protocols": ["tcp"]}):
        firewall.rules()
        put(firewall, {"a": ["10.0.0.0/8", "10.0.0.1", "0.0.0.0/1"], "b": ["10.0.0.1"]})
        firewall.rules({"id": "a", "sources": ["@a"], **fields})
        firewall.judge(tcp("10.0.0.1"))
        assert packets(firewall, "a") == {"0.0.0.0/1": 1, "10.0.0.0/8": 0, "10.0.0.1": 0}
        assert packets(firewall, "b") == {"10.0.0.1": None}  # no rule names it


def test_both_sides_count_and_one_entry_once(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.0/24", "10.0.1.0/24"], "b": ["10.0.1.1"]})
    firewall.rules({"id": "r", "sources": ["@a"], "destinations": ["@a", "@b"]})
    firewall.judge(tcp("10.0.0.1", "10.0.1.1"))
    firewall.judge(tcp("10.0.1.2", "10.0.1.1"))
    assert packets(firewall, "a") == {"10.0.0.0/24": 1, "10.0.1.0/24": 2}
    assert packets(firewall, "b") == {"10.0.1.1": 2}


def test_rules_that_observe_count_entries_as_they_count_packets(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.1"], "b": ["10.0.0.1"], "c": ["10.0.0.1"]})
    firewall.rules(
        {"id": "seen", "sources": ["@a"], "mode": "observe", "priority": 1},
        {"id": "decides", "sources": ["@b"], "protocols": ["tcp"], "priority": 2},
        {"id": "late", "sources": ["@c"], "mode": "observe", "priority": 3},
    )
    firewall.judge(tcp("10.0.0.1"))
    assert [packets(firewall, name) for name in NAMES] == [{"10.0.0.1": 1}, {"10.0.0.1": 1}, {"10.0.0.1": 0}]


def test_a_rule_that_names_more_sets_than_one_run_takes_counts_all(firewall: Loaded) -> None:
    names = [f"many-{number}" for number in range(100)]
    put(firewall, {name: ["10.0.0.1", "10.9.0.0/16"] for name in names})
    firewall.rules({**RULE, "sources": [f"@{name}" for name in names]})
    for hook in ("ingress", "egress"):
        firewall.edit("port", direction=hook)
        firewall.judge(tcp("10.0.0.1", dport=22), hook)
    assert {name: packets(firewall, name)["10.0.0.1"] for name in names} == dict.fromkeys(names, 2)


CHANGES = {
    "another rule comes": lambda firewall: firewall.add(id="x", destination_ports=[99]),
    "another set comes": lambda firewall: firewall.add(id="x", sources=["@b"], destination_ports=[99]),
    "the rule changes": lambda firewall: firewall.edit("port", priority=5, action="allow"),
    "entries come": lambda firewall: firewall.enforcer.add_entries("a", columns(["10.0.0.0", "10.0.0.5"])),
    "entries go": lambda firewall: firewall.enforcer.delete_entries("a", columns(["10.0.0.1", "10.0.0.4"])),
    "another rule names it too": lambda firewall: firewall.add(id="x", destinations=["@a"], protocols=["udp"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_entries_that_stay_go_on_counting_over_changes_and_restarts(firewall: Loaded, name: str) -> None:
    put(firewall, {"a": ["10.0.0.1", "10.0.0.2", "10.0.0.4", "2001:db8::1"], "b": ["10.0.0.1", "10.0.0.2"]})
    firewall.rules(RULE)
    for source in ("10.0.0.1", "10.0.0.2", "10.0.0.2", "2001:db8::1"):
        firewall.judge(tcp(source, dport=22))
    CHANGES[name](firewall)
    firewall.kernel.settle()
    for _ in range(2):
        firewall.judge(tcp("10.0.0.2", dport=22))
        after = packets(firewall, "a")
        assert after["2001:db8::1"] == 1
        assert after.get("10.0.0.1") == (None if name == "entries go" else 1)
        firewall.restart()
    assert packets(firewall, "a")["10.0.0.2"] == 4
    assert_exact(firewall)


def test_an_entry_that_comes_again_begins_at_0(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.1", "10.0.0.2"]})
    firewall.rules(RULE)
    for source in ("10.0.0.1", "10.0.0.2"):
        firewall.judge(tcp(source, dport=22))
    firewall.enforcer.delete_entries("a", columns(["10.0.0.1"]))
    firewall.enforcer.add_entries("a", columns(["10.0.0.1", "10.0.0.3"]))
    firewall.enforcer.add_entries("a", columns(["10.0.0.4"]))
    assert packets(firewall, "a") == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0, "10.0.0.4": 0}
    firewall.enforcer.add_entries("a", columns(["10.0.0.0/30"]))  # now they lie in it
    firewall.judge(tcp("10.0.0.2", dport=22))
    assert packets(firewall, "a")["10.0.0.0/30"] == 1 and packets(firewall, "a")["10.0.0.2"] == 0


def test_counters_outlive_the_growth_of_their_tables(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.1"]})
    firewall.rules(RULE)
    firewall.judge(tcp("10.0.0.1", dport=22))
    firewall.enforcer.add_entries("a", columns(f"11.{n >> 8}.{n & 255}.0/25" for n in range(40_000)))
    assert packets(firewall, "a")["10.0.0.1"] == 1
    firewall.judge(tcp("10.0.0.1", dport=22))
    firewall.judge(tcp("11.7.7.7", dport=22))
    firewall.restart()
    assert counted(firewall)["a", "10.0.0.1"][0] == 2
    assert counted(firewall)["a", "11.7.7.0/25"][0] == 1
    assert_exact(firewall)
    firewall.renew()
