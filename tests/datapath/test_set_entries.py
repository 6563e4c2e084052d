"""What entries of sets count: those of rules with more fields too, in programs of their own behind the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from firewall.kernel.maps import COUNTING
from firewall.view import EntryQuery
from tests.datapath.contents import assert_exact
from tests.datapath.frames import tcp
from tests.datapath.loaded import Loaded
from tests.datapath.sets import NAMES, columns, counted, forget, packets_of, put


@pytest.fixture(autouse=True)
def no_sets(firewall: Loaded) -> Iterator[None]:
    yield
    forget(firewall)


RULE: dict[str, Any] = {"id": "port", "sources": ["@a"], "protocols": ["tcp"], "destination_ports": ["22"]}


def test_an_entry_counts_what_its_rule_decides_and_nothing_else(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.1", "10.0.0.2", "2001:db8::/32"]})
    firewall.rules(RULE)
    assert packets_of(firewall, "a") == {"10.0.0.1": 0, "10.0.0.2": 0, "2001:db8::/32": 0}
    frame = tcp("10.0.0.1", dport=22)
    assert firewall.judge(frame).verdict == "drop"
    firewall.judge(frame)
    firewall.judge(tcp("10.0.0.1", dport=23))  # of no rule
    firewall.judge(tcp("10.0.0.3", dport=22))  # of no entry
    firewall.judge(tcp("2001:db8::7", dport=22))
    assert packets_of(firewall, "a") == {"10.0.0.1": 2, "10.0.0.2": 0, "2001:db8::/32": 1}
    (entry, _, _), _ = firewall.enforcer.entries("a", EntryQuery(), 0, 10)
    assert entry.bytes == 2 * len(frame) and entry.last_hit is not None
    assert firewall.hits("port")[0] == 3


def test_where_entries_lie_in_each_other_the_widest_counts_in_every_kind_of_rule(firewall: Loaded) -> None:
    for fields in ({}, {"protocols": ["tcp"]}):
        firewall.rules()
        put(firewall, {"a": ["10.0.0.0/8", "10.0.0.1", "0.0.0.0/1"], "b": ["10.0.0.1"]})
        firewall.rules({"id": "a", "sources": ["@a"], **fields})
        firewall.judge(tcp("10.0.0.1"))
        assert packets_of(firewall, "a") == {"0.0.0.0/1": 1, "10.0.0.0/8": 0, "10.0.0.1": 0}
        assert packets_of(firewall, "b") == {"10.0.0.1": None}  # no rule names it


def test_both_sides_count_and_one_entry_once(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.0/24", "10.0.1.0/24"], "b": ["10.0.1.1"]})
    firewall.rules({"id": "r", "sources": ["@a"], "destinations": ["@a", "@b"]})
    firewall.judge(tcp("10.0.0.1", "10.0.1.1"))
    firewall.judge(tcp("10.0.1.2", "10.0.1.1"))
    assert packets_of(firewall, "a") == {"10.0.0.0/24": 1, "10.0.1.0/24": 2}
    assert packets_of(firewall, "b") == {"10.0.1.1": 2}


def test_rules_that_observe_count_entries_as_they_count_packets_of(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.1"], "b": ["10.0.0.1"], "c": ["10.0.0.1"]})
    firewall.rules(
        {"id": "seen", "sources": ["@a"], "mode": "observe", "priority": 1},
        {"id": "decides", "sources": ["@b"], "protocols": ["tcp"], "priority": 2},
        {"id": "late", "sources": ["@c"], "mode": "observe", "priority": 3},
    )
    firewall.judge(tcp("10.0.0.1"))
    assert [packets_of(firewall, name) for name in NAMES] == [
        {"10.0.0.1": 1},
        {"10.0.0.1": 1},
        {"10.0.0.1": 0},
    ]


def test_a_rule_that_names_more_sets_than_one_run_takes_counts_all(firewall: Loaded) -> None:
    names = [f"many-{number}" for number in range(100)]
    put(firewall, {name: ["10.0.0.1", "10.9.0.0/16"] for name in names})
    firewall.rules({**RULE, "sources": [f"@{name}" for name in names]})
    for hook in ("ingress", "egress"):
        firewall.edit("port", direction=hook)
        firewall.judge(tcp("10.0.0.1", dport=22), hook)
    assert {name: packets_of(firewall, name)["10.0.0.1"] for name in names} == dict.fromkeys(names, 2)


CHANGES = {
    "another rule comes": lambda firewall: firewall.add(id="x", destination_ports=[99]),
    "another set comes": lambda firewall: firewall.add(id="x", sources=["@b"], destination_ports=[99]),
    "the rule changes": lambda firewall: firewall.edit("port", priority=5, action="allow"),
    "entries come": lambda firewall: firewall.enforcer.add_entries("a", columns(["10.0.0.0", "10.0.0.5"])),
    "entries go": lambda firewall: firewall.enforcer.delete_entries("a", columns(["10.0.0.1", "10.0.0.4"])),
    "another rule names it too": lambda firewall: firewall.add(
        id="x", destinations=["@a"], protocols=["udp"]
    ),
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
        after = packets_of(firewall, "a")
        assert after["2001:db8::1"] == 1
        assert after.get("10.0.0.1") == (None if name == "entries go" else 1)
        firewall.restart()
    assert packets_of(firewall, "a")["10.0.0.2"] == 4
    assert_exact(firewall)


def test_an_entry_that_comes_again_begins_at_0(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.1", "10.0.0.2"]})
    firewall.rules(RULE)
    for source in ("10.0.0.1", "10.0.0.2"):
        firewall.judge(tcp(source, dport=22))
    firewall.enforcer.delete_entries("a", columns(["10.0.0.1"]))
    firewall.enforcer.add_entries("a", columns(["10.0.0.1", "10.0.0.3"]))
    firewall.enforcer.add_entries("a", columns(["10.0.0.4"]))
    assert packets_of(firewall, "a") == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0, "10.0.0.4": 0}
    firewall.enforcer.add_entries("a", columns(["10.0.0.0/30"]))  # now they lie in it
    firewall.judge(tcp("10.0.0.2", dport=22))
    assert packets_of(firewall, "a")["10.0.0.0/30"] == 1 and packets_of(firewall, "a")["10.0.0.2"] == 0


def test_counters_outlive_the_growth_of_their_tables(firewall: Loaded) -> None:
    put(firewall, {"a": ["10.0.0.1"]})
    firewall.rules(RULE)
    firewall.judge(tcp("10.0.0.1", dport=22))
    firewall.enforcer.add_entries("a", columns(f"11.{n >> 8}.{n & 255}.0/25" for n in range(40_000)))
    assert packets_of(firewall, "a")["10.0.0.1"] == 1
    firewall.judge(tcp("10.0.0.1", dport=22))
    firewall.judge(tcp("11.7.7.7", dport=22))
    firewall.restart()
    assert counted(firewall)["a", "10.0.0.1"][0] == 2
    assert counted(firewall)["a", "11.7.7.0/25"][0] == 1
    assert_exact(firewall)
    firewall.renew()


def test_where_its_maps_are_gone_rules_count_on_and_entries_begin_anew(firewall: Loaded) -> None:
    """As after the end of the mount that held the pins: the kernel frees what only the counting programs used."""
    put(firewall, {"a": ["10.0.0.1"]})
    firewall.rules(RULE)
    firewall.judge(tcp("10.0.0.1", dport=22))
    pins = firewall.kernel._pins() / "maps"
    for name in COUNTING:
        (pins / name).unlink()
    firewall.restart()
    assert firewall.hits("port")[0] == 1
    assert packets_of(firewall, "a") == {"10.0.0.1": 0}
    firewall.judge(tcp("10.0.0.1", dport=22))
    assert packets_of(firewall, "a") == {"10.0.0.1": 1}
    assert_exact(firewall)
