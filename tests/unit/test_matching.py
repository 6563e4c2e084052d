"""Which rules a packet matches, and which wins: against the oracle, and against the compiled image."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from firewall.layout import C
from firewall.matching import MatchingRule, matching_rules, winner
from firewall.packet import Packet
from firewall.rule import rule_from_fields
from firewall.ruleset import Ruleset
from firewall.store import Record
from tests import oracle, random_rules
from tests.oracle import ICMPV6, TCP, TCP_FLAGS, UDP
from tests.unit.image import verdict

INTERFACES = {"eth0": 2, "eth1": 3}
GLOBS = ("eth0", "eth*", "wg0")
HOOKS = ("ingress", "egress")
HOST = 0x0A000001


def ruleset_of(rules: list[dict[str, Any]]) -> Ruleset:
    """Handles are 1, 2, ... in their order."""
    compiled = Ruleset(2 * len(rules) + 2, {})
    records = [
        Record(handle, rule_from_fields(fields, f"r{handle}", 0.0), 0.0, 0.0)
        for handle, fields in enumerate(rules, 1)
    ]
    compiled.commit(compiled.plan([], records, INTERFACES))
    return compiled


def packet_of(parsed: oracle.Packet, hook: int, interface: str | None) -> Packet:
    assert parsed.version is not None and parsed.protocol is not None
    flags = None if parsed.tcp_flags is None else sum(TCP_FLAGS[name] for name in parsed.tcp_flags)
    ports, icmp = parsed.ports or (None, None), parsed.icmp or (None, None)
    return Packet(
        hook, interface, parsed.version, int(parsed.source or 0), int(parsed.destination or 0), parsed.protocol,
        ports[0], ports[1], flags, icmp[0], icmp[1], parsed.fragment,
    )  # fmt: skip


def packet(**fields: Any) -> Packet:
    defaults = {
        "hook": 0,
        "interface": "eth0",
        "version": 4,
        "source": HOST,
        "destination": 1,
        "protocol": 59,
    }
    return Packet(**{**defaults, **fields})


def handles(found: list[MatchingRule]) -> list[int]:
    return [each.handle for each in found]


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_the_rules_that_match_are_those_of_the_oracle_in_winning_order(seed: int) -> None:
    rng = random.Random(seed)
    rules = random_rules.random_rules(rng, rng.choice((1, 5, 40)), GLOBS)
    compiled = ruleset_of([{k: v for k, v in each.items() if k != "id"} for each in rules])
    for _ in range(20):
        parsed = oracle.parse(random_rules.random_frame(rng))
        if parsed.reason != "default":
            continue
        hook, interface = rng.randrange(2), rng.choice(tuple(INTERFACES))
        found = matching_rules(packet_of(parsed, hook, interface), compiled)
        expected = [
            n for n, each in enumerate(rules, 1) if oracle.matches(each, parsed, HOOKS[hook], interface)
        ]
        assert sorted(set(handles(found))) == expected
        assert [each.rank for each in found] == sorted(each.rank for each in found)
        judged = verdict(compiled.policy, compiled.addresses, hook, parsed, INTERFACES[interface])
        enforcing = [each.rank for each in found if not each.observes]
        assert next(iter(enforcing), None) == (judged[0] if judged else None)
        if found:
            ranks = [oracle.rank(rules[n - 1]) for n in expected]
            assert found[0].drops == (min(ranks)[1] == 0)


def test_the_winner_is_the_first_and_none_where_none_matches() -> None:
    rules = ruleset_of(
        [
            {"sources": "10.0.0.0/8"},
            {"protocols": [59], "priority": 10, "action": "allow"},
            {"sources": "10.0.0.1"},
        ]
    )
    assert handles(matching_rules(packet(), rules)) == [2, 1, 3]
    assert winner(packet(), rules) == MatchingRule(C["RANK_FIRST"] + 21, 2, True)
    assert winner(packet(source=1, protocol=UDP), rules) is None


def test_rules_that_share_a_prefix_all_match_the_older_first() -> None:
    rules = ruleset_of(
        [{"sources": "10.0.0.1"}, {"sources": "10.0.0.1"}, {"sources": "10.0.0.1", "action": "allow"}]
    )
    assert handles(matching_rules(packet(), rules)) == [1, 2, 3]


def test_a_list_of_overlapping_prefixes_is_one_match_for_the_policy_and_one_each_for_the_tables() -> None:
    rules = ruleset_of(
        [{"sources": ["10.0.0.0/8", "10.0.0.1"], "protocols": [59]}, {"sources": ["10.0.0.0/8"]}]
    )
    assert handles(matching_rules(packet(), rules)) == [2, 1]


def test_a_packet_without_ports_matches_no_rule_on_ports_or_flags_or_types() -> None:
    rules = ruleset_of(
        [
            {"destination_ports": [22]},
            {"tcp_flags": {"set": ["ack"]}},
            {"icmp_types": [8]},
            {"protocols": ["tcp"]},
            {"tcp_flags": {"unset": ["ack"]}},
        ]
    )
    later = packet(protocol=TCP, is_fragment=True, is_later_fragment=True)
    assert handles(matching_rules(later, rules)) == [4]
    whole = packet(protocol=TCP, source_port=1, destination_port=22, tcp_flags=0x10)
    assert handles(matching_rules(whole, rules)) == [1, 2, 4]


def test_a_packet_of_no_named_interface_matches_only_rules_that_name_none() -> None:
    rules = ruleset_of([{"interfaces": ["eth*"]}, {"protocols": [59]}])
    assert handles(matching_rules(packet(), rules)) == [1, 2]
    assert handles(matching_rules(packet(interface=None), rules)) == [2]


def test_a_type_with_a_code_asks_for_both() -> None:
    rules = ruleset_of([{"icmp_types": ["3/1"]}, {"icmp_types": ["3"]}])
    asked = packet(version=6, protocol=ICMPV6, icmp_type=3)
    assert handles(matching_rules(asked, rules)) == [2]
    assert handles(matching_rules(packet(version=6, protocol=ICMPV6, icmp_type=3, icmp_code=1), rules)) == [
        1,
        2,
    ]
