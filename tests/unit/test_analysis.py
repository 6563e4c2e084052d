"""Rules that decide nothing: whom the analysis accuses is innocent of no packet, as the oracle judges."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firewall import containment
from firewall.analysis import Neighbours, matches_nothing, same_packets
from firewall.containment import covers, match_of, may_meet
from firewall.rule import Rule, rule_from_fields
from firewall.ruleset import Ruleset
from firewall.ruleset_analysis import Report, analyse
from firewall.store import Record
from tests import oracle, random_rules

INTERFACES = {"eth0": 2, "eth1": 3, "wg0": 4}
GLOBS = ("eth0", "eth*", "eth1", "wg0", "*")
HOOKS = ("ingress", "egress")
SEEDS = st.integers(0, 2**32)
Fields = dict[str, Any]


def rule(**fields: Any) -> Rule:
    return rule_from_fields(fields, str(fields.get("id", "r")), 0.0)


def compiled(rules: list[Fields]) -> Ruleset:
    """Handles are 1 and up, in order."""
    ruleset = Ruleset(1024, {})
    records = [Record(at, rule(**fields), 0.0, 0.0) for at, fields in enumerate(rules, 1)]
    ruleset.commit(ruleset.plan([], records, INTERFACES))
    return ruleset


def report(rules: list[Fields]) -> Report:
    return analyse(compiled(rules).frozen(), INTERFACES, ())


def findings(*rules: Fields) -> list[tuple[int, str, int]]:
    """Accused, code, other: rules by their place, from 0; -1 for none."""
    return [(each.handle - 1, each.code, each.other - 1) for each in report(list(rules)).page(0, 100)]


def judgements(rules: list[Fields], frames: list[bytes]) -> Iterator[oracle.Judgement]:
    for frame in frames:
        for hook in HOOKS:
            for name in INTERFACES:
                for malformed in ("drop", "pass"):
                    yield oracle.judge(rules, frame, direction=hook, interface=name, malformed=malformed)


# --- one rule holds another


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({}, {"sources": "10.0.0.0/8"}),
        ({"sources": "10.0.0.0/8"}, {"sources": ["10.1.0.0/16", "10.2.3.4"]}),
        ({"sources": ["10.0.0.0/9", "10.128.0.0/9"]}, {"sources": "10.0.0.0/8"}),
        ({"sources": ["0.0.0.0/0", "::/0"]}, {"sources": "2001:db8::1", "protocols": "tcp"}),
        ({"sources": ["0.0.0.0/0", "::/0"]}, {}),
        ({"destination_ports": "80-90"}, {"destination_ports": [81, 90]}),
        ({"destination_ports": ["80-84", "85-90"]}, {"destination_ports": "80-90"}),
        ({"destination_ports": "0-65535"}, {"source_ports": 53}),
        ({"destination_ports": "0-65535", "protocols": "tcp"}, {"tcp_flags": {"set": ["syn"]}}),
        ({"protocols": ["tcp", "udp"]}, {"destination_ports": 80}),
        ({"protocols": "tcp"}, {"protocols": ["tcp", "gre"], "destination_ports": 80}),
        ({"protocols": "tcp"}, {"tcp_flags": {"set": ["syn"]}}),
        ({"tcp_flags": {"set": ["syn"]}}, {"tcp_flags": {"set": ["syn"], "unset": ["ack"]}}),
        ({"icmp_types": "3"}, {"icmp_types": ["3/1", "3/2"]}),
        ({"icmp_types": [f"3/{code}" for code in range(256)]}, {"icmp_types": "3"}),
        ({"protocols": "icmp"}, {"protocols": "icmp", "icmp_types": "8"}),
        ({"interfaces": "eth*"}, {"interfaces": ["eth0", "eth1*"]}),
        ({"interfaces": "*"}, {}),
        ({"direction": "both"}, {"direction": "egress"}),
        ({"family": "ipv4"}, {"sources": "10.0.0.1"}),
        ({"family": "ipv4"}, {"sources": ["10.0.0.1", "::1"], "family": "ipv4"}),
    ],
)
def test_a_rule_that_matches_all_of_another_is_known_to(outer: Fields, inner: Fields) -> None:
    assert covers(match_of(rule(**outer)), match_of(rule(**inner)))
    assert same_packets(rule(**outer), rule(**inner)) == covers(
        match_of(rule(**inner)), match_of(rule(**outer))
    )


@pytest.mark.parametrize(
    ("outer", "inner", "what"),
    [
        ({"sources": "10.1.0.0/16"}, {"sources": "10.0.0.0/8"}, "a part of the network"),
        ({"sources": "10.0.0.0/8"}, {"destinations": "10.0.0.0/8"}, "the other side"),
        ({"sources": "10.0.0.0/8"}, {"sources": ["10.1.0.0/16", "2001:db8::/32"]}, "IPv6"),
        ({"destination_ports": "0-65535"}, {"protocols": "tcp"}, "later fragments have no ports"),
        (
            {"destination_ports": "0-65535"},
            {"protocols": "sctp", "destination_ports": 80},
            "tcp and udp alone",
        ),
        ({"destination_ports": "80"}, {"destination_ports": "80-81"}, "one port more"),
        ({"protocols": "tcp"}, {"destination_ports": 80}, "udp as well"),
        ({"tcp_flags": {"set": ["syn"]}}, {"protocols": "tcp"}, "other flags"),
        ({"tcp_flags": {"set": ["syn"], "unset": ["ack"]}}, {"tcp_flags": {"set": ["syn"]}}, "with ack"),
        ({"icmp_types": "3/1"}, {"icmp_types": "3"}, "other codes"),
        ({"icmp_types": "3"}, {"protocols": ["icmp", "icmpv6"]}, "later fragments"),
        ({"interfaces": "eth*"}, {}, "other interfaces"),
        ({"interfaces": "eth0"}, {"interfaces": "eth*"}, "eth1"),
        ({"interfaces": "eth?"}, {"interfaces": "eth*"}, "eth10"),
        ({"direction": "ingress"}, {"direction": "both"}, "egress"),
        ({"family": "ipv4"}, {}, "IPv6"),
    ],
)
def test_a_rule_that_leaves_something_of_another_is_not_said_to_match_all(
    outer: Fields, inner: Fields, what: str
) -> None:
    assert not covers(match_of(rule(**outer)), match_of(rule(**inner))), what


@given(SEEDS)
@settings(max_examples=300)
def test_containment_and_disjointness_hold_for_every_packet(seed: int) -> None:
    rng = random.Random(seed)
    one, other = random_rules.random_rules(rng, 2, GLOBS)
    frames = [random_rules.random_frame(rng) for _ in range(30)]
    mine, theirs = match_of(rule(**one)), match_of(rule(**other))
    is_held, is_apart = covers(mine, theirs), not may_meet(mine, theirs)
    for frame in frames:
        packet = oracle.parse(frame)
        if packet.version is None:
            continue
        for hook in HOOKS:
            for name in INTERFACES:
                first, second = (
                    oracle.matches({**each, "enabled": True}, packet, hook, name) for each in (one, other)
                )
                assert first or not (is_held and second)
                assert not (is_apart and first and second)


# --- the whole rule set


def test_what_a_rule_matches_is_forgotten_with_it() -> None:
    """A service sees more rules in a year than its memory holds."""
    kept = rule(id="kept", sources=["10.0.0.1"])
    match_of(kept)
    before = len(containment._matches)
    for number in range(100):
        match_of(rule(id=f"gone-{number}", sources=["10.0.0.1"]))
    assert len(containment._matches) == before
    assert match_of(kept) is match_of(kept)


@given(SEEDS, st.integers(2, 40))
@settings(max_examples=200)
def test_the_accused_never_win_and_the_redundant_are_not_missed(seed: int, count: int) -> None:
    rng = random.Random(seed)
    rules = random_rules.random_rules(rng, count, GLOBS)
    frames = [random_rules.random_frame(rng) for _ in range(20)]
    winners = {each.rule_id for each in judgements(rules, frames)}
    for finding in report(rules).page(0, 1000):
        accused = rules[finding.handle - 1]
        if finding.code != "redundant":
            assert accused["id"] not in winners, finding
        without = [each for each in rules if each is not accused]
        assert [each.verdict for each in judgements(without, frames)] == [
            each.verdict for each in judgements(rules, frames)
        ], finding


@given(SEEDS, st.integers(2, 25))
@settings(max_examples=150)
def test_one_rule_is_accused_as_it_is_among_all(seed: int, count: int) -> None:
    rng = random.Random(seed)
    rules = random_rules.random_rules(rng, count, GLOBS)
    ruleset = compiled(rules)
    neighbours = Neighbours(ruleset)
    shadowed = {each.handle for each in report(rules).page(0, 1000) if each.code in ("shadowed", "duplicate")}
    for handle, fields in enumerate(rules, 1):
        beaten = neighbours.beaten(rule(**fields), handle)
        assert (beaten is not None and beaten.code == "shadowed") == (handle in shadowed), fields


def drop(**fields: Any) -> Fields:
    return {"action": "drop", **fields}


def allow(**fields: Any) -> Fields:
    return {"action": "allow", **fields}


def test_a_network_of_a_better_rank_shadows_its_hosts() -> None:
    net = allow(sources="10.0.0.0/8", priority=10)
    assert findings(net, drop(sources="10.1.2.3"), drop(sources="11.1.2.3")) == [(1, "shadowed", 0)]


def test_a_rule_is_accused_only_where_all_its_prefixes_are() -> None:
    net = allow(sources="10.0.0.0/8", priority=10)
    assert findings(net, drop(sources=["10.1.2.3", "192.0.2.1"])) == []
    other = allow(sources="192.0.2.0/24", priority=10)
    assert findings(net, drop(sources=["10.1.2.3", "192.0.2.1"]), other) == [(1, "shadowed", 0)]


def test_a_later_rule_of_a_worse_rank_shadows_nothing() -> None:
    assert findings(drop(sources="10.1.2.3", priority=10), allow(sources="10.0.0.0/8")) == []


def test_the_same_rule_twice_is_a_duplicate() -> None:
    assert findings(drop(destination_ports=80), drop(destination_ports=80)) == [(1, "duplicate", 0)]
    assert findings(drop(destination_ports=80), allow(destination_ports=80)) == [(1, "shadowed", 0)]


def test_a_policy_rule_for_everything_shadows_address_rules() -> None:
    assert findings(allow(priority=1), drop(sources="10.0.0.1")) == [(1, "shadowed", 0)]
    assert findings(allow(priority=1, protocols="tcp"), drop(sources="10.0.0.1")) == []


def test_address_rules_together_shadow_a_policy_rule() -> None:
    rules = [allow(sources="10.0.0.0/8", priority=1), allow(sources="192.0.2.0/24", priority=2)]
    both = drop(sources=["10.1.0.0/16", "192.0.2.1"], destination_ports=22)
    assert findings(*rules, both) == [(2, "shadowed", 0)]
    assert findings(rules[0], both) == []


def test_a_rule_behind_which_another_decides_the_same_is_redundant_until_one_stands_between() -> None:
    host, net = drop(sources="10.1.2.3", priority=10), drop(sources="10.0.0.0/8", priority=20)
    assert findings(host, net) == [(0, "redundant", 1)]
    assert findings(host, net, allow(protocols="tcp", priority=15)) == []
    port, ports = drop(destination_ports=80, priority=10), drop(destination_ports="1-100", priority=20)
    assert findings(port, ports) == [(0, "redundant", 1)]
    assert findings(port, ports, allow(sources="192.0.2.1", priority=15)) == []


def test_what_no_packet_can_match_is_told() -> None:
    mixed = drop(sources="10.0.0.1", destinations="2001:db8::1")
    assert matches_nothing(rule(**mixed))
    assert findings(mixed) == [(0, "matches_nothing", -1)]


def test_names_that_no_interface_has_are_told() -> None:
    assert findings(drop(interfaces=["ppp*"]), drop(interfaces=["wg*"])) == [(0, "no_interface", -1)]


def test_observe_rules_shadow_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.analysis.decides", lambda each: each.id != "first")
    first = drop(id="first", destination_ports="1-100", priority=1)
    assert findings(first, allow(destination_ports=80)) == []
