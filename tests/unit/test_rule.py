"""A rule from the contract's fields and back: every field, every fault with its place, fields together."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from firewall.address import parse_prefix
from firewall.errors import InvalidInput, Problem
from firewall.match import IcmpType, PortRange, TcpFlags
from firewall.rule import Rule, format_time, parse_id, parse_time, rule_from_fields
from tests.random_rules import random_rules

NOW = 1_700_000_000.25
SEEDS = st.integers(0, 2**32)


def rule(**fields: Any) -> Rule:
    return rule_from_fields(fields, "r", NOW)


def faults(**fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as raised:
        rule(**fields)
    assert raised.value.code == "invalid_rule"
    return [(problem.pointer, problem.detail) for problem in raised.value.problems]


# --- what is accepted


def test_no_field_is_needed() -> None:
    assert rule() == Rule("r")
    assert rule().fields() == {
        "id": "r",
        "description": "",
        "enabled": True,
        "mode": "enforce",
        "action": "drop",
        "priority": 1000,
        "direction": "ingress",
        "interfaces": [],
        "family": "any",
        "sources": [],
        "destinations": [],
        "protocols": [],
        "source_ports": [],
        "destination_ports": [],
        "icmp_types": [],
        "tcp_flags": None,
        "expires_at": None,
        "labels": {},
    }


def test_the_example_of_the_contract_is_read_field_by_field() -> None:
    given = {
        "id": "web-1", "description": "no web", "enabled": False, "action": "allow", "priority": 7,
        "direction": "both", "interfaces": ["eth0", "veth*"], "family": "ipv4",
        "sources": ["203.0.113.0/24"], "destinations": ["198.51.100.1"], "protocols": ["tcp", 17],
        "source_ports": [1024], "destination_ports": ["22", "8000-8100"], "icmp_types": [],
        "tcp_flags": {"set": ["syn"], "unset": ["ack"]}, "ttl": None, "labels": {"team": "web"},
    }  # fmt: skip
    assert rule_from_fields(given, "web-1", NOW) == Rule(
        id="web-1",
        description="no web",
        enabled=False,
        action="allow",
        priority=7,
        direction="both",
        interfaces=("eth0", "veth*"),
        family="ipv4",
        sources=(parse_prefix("203.0.113.0/24"),),
        destinations=(parse_prefix("198.51.100.1"),),
        protocols=(6, 17),
        source_ports=(PortRange(1024, 1024),),
        destination_ports=(PortRange(22, 22), PortRange(8000, 8100)),
        tcp_flags=TcpFlags(2, 16),
        labels=(("team", "web"),),
    )
    assert rule(icmp_types="3/1").icmp_types == (IcmpType(3, 1),)


@pytest.mark.parametrize("name", sorted(Rule("r").fields()))
def test_null_means_the_default(name: str) -> None:
    assert rule(**{name: None}) == Rule("r")


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("interfaces", "eth0"),
        ("sources", "203.0.113.7"),
        ("destinations", "2001:db8::/32"),
        ("protocols", "tcp"),
        ("protocols", 6),
        ("source_ports", 80),
        ("destination_ports", "80-90"),
        ("icmp_types", 8),
        ("icmp_types", "3/1"),
    ],
)
def test_one_element_stands_for_a_list_of_it_and_repetitions_for_one(name: str, element: object) -> None:
    assert rule(**{name: element}) == rule(**{name: [element]}) == rule(**{name: [element, element]})


def test_the_order_of_a_list_is_kept() -> None:
    assert rule(protocols=["udp", "tcp"]).fields()["protocols"] == ["udp", "tcp"]


@pytest.mark.parametrize("flags", [{}, {"set": []}, {"set": None, "unset": []}])
def test_no_flag_asked_is_no_flags_field(flags: dict[str, Any]) -> None:
    assert rule(tcp_flags=flags).tcp_flags is None


def test_read_only_fields_are_accepted_and_ignored() -> None:
    assert rule(created_at="2020-01-01T00:00:00Z", updated_at=1, stats={"packets": 1}) == Rule("r")


@given(SEEDS)
def test_what_a_rule_writes_it_is_read_from_again(seed: int) -> None:
    for fields in random_rules(random.Random(seed), 5, ("eth0", "veth*")):
        made = rule_from_fields(fields, fields["id"], NOW)
        assert rule_from_fields(made.fields(), made.id, NOW) == made


# --- faults


@pytest.mark.parametrize(
    ("fields", "pointer", "detail"),
    [
        ({"description": 5}, "/description", "must be text"),
        ({"description": "x" * 1025}, "/description", "is 1025 characters long; at most 1024 are kept"),
        ({"enabled": 1}, "/enabled", "must be true or false"),
        ({"enabled": "yes"}, "/enabled", "must be true or false"),
        ({"action": "reject"}, "/action", "'reject' is not one of drop, allow"),
        ({"action": ["drop"]}, "/action", "['drop'] is not one of drop, allow"),
        ({"action": "Drop"}, "/action", "'Drop' is not one of drop, allow"),
        ({"priority": -1}, "/priority", "-1 is not an integer from 0 to 65535"),
        ({"priority": 65536}, "/priority", "65536 is not an integer from 0 to 65535"),
        ({"priority": "10"}, "/priority", "'10' is not an integer from 0 to 65535"),
        ({"priority": True}, "/priority", "True is not an integer from 0 to 65535"),
        ({"priority": 1.0}, "/priority", "1.0 is not an integer from 0 to 65535"),
        ({"direction": "in"}, "/direction", "'in' is not one of ingress, egress, both"),
        ({"family": 4}, "/family", "4 is not one of any, ipv4, ipv6"),
        ({"interfaces": ["eth0", "a b"]}, "/interfaces/1", "'a b' is not an interface name or glob"),
        ({"interfaces": ""}, "/interfaces/0", "'' is not an interface name or glob"),
        ({"interfaces": ["a/b"]}, "/interfaces/0", "'a/b' is not an interface name or glob"),
        ({"interfaces": {"eth0": 1}}, "/interfaces", "must be a list"),
        ({"sources": ["10.0.0.0/8", "x"]}, "/sources/1", "'x' is not an IPv4 or IPv6 address or CIDR"),
        ({"sources": [10]}, "/sources/0", "10 is not an IPv4 or IPv6 address or CIDR"),
        ({"sources": [None]}, "/sources/0", "None is not an IPv4 or IPv6 address or CIDR"),
        ({"sources": [["10.0.0.1"]]}, "/sources/0", "['10.0.0.1'] is not an IPv4"),
        ({"sources": "203.0.113.7/24"}, "/sources/0", "has host bits set; the network is 203.0.113.0/24"),
        ({"destinations": "2001:db8::1/32"}, "/destinations/0", "the network is 2001:db8::/32"),
        ({"destinations": 1.5}, "/destinations", "must be a list"),
        ({"protocols": ["tpc"]}, "/protocols/0", "'tpc' is no protocol known by name; use its number"),
        ({"protocols": [256]}, "/protocols/0", "256 is not a protocol number from 0 to 255"),
        ({"protocols": True}, "/protocols/0", "True is not a protocol number from 0 to 255"),
        ({"source_ports": ["http"]}, "/source_ports/0", "'http' is not a port from 0 to 65535"),
        ({"destination_ports": [80, 65536]}, "/destination_ports/1", "'65536' is not a port from 0 to 65535"),
        ({"destination_ports": "90-80"}, "/destination_ports/0", "80-90 may have been meant"),
        ({"icmp_types": ["256"]}, "/icmp_types/0", "'256' is not an ICMP type from 0 to 255"),
        ({"icmp_types": ["3/256"]}, "/icmp_types/0", "'256' is not an ICMP code from 0 to 255"),
        ({"tcp_flags": "syn"}, "/tcp_flags", 'must be an object with "set" and "unset", lists of flags'),
        ({"tcp_flags": {"sett": ["syn"]}}, "/tcp_flags", 'must be an object with "set" and "unset"'),
        ({"tcp_flags": {"set": 2}}, "/tcp_flags", '"set" must be a list of flags'),
        ({"tcp_flags": {"set": {}}}, "/tcp_flags", '"set" must be a list of flags'),
        ({"tcp_flags": {"unset": False}}, "/tcp_flags", '"unset" must be a list of flags'),
        ({"tcp_flags": {"unset": [2]}}, "/tcp_flags", '"unset" must be a list of flags'),
        ({"tcp_flags": {"set": ["sny"]}}, "/tcp_flags", "'sny' is not one of fin, syn"),
        ({"tcp_flags": {"set": ["syn"], "unset": ["syn"]}}, "/tcp_flags", "syn cannot be set and unset"),
        ({"ttl": "soon"}, "/ttl", "'soon' is not a number of seconds or a duration"),
        ({"ttl": 0}, "/ttl", "must be from 1 second to 315360000 seconds"),
        ({"expires_at": 5}, "/expires_at", "must be an RFC 3339 time such as 2030-01-01T00:00:00Z"),
        ({"expires_at": "soon"}, "/expires_at", "'soon' is not an RFC 3339 time"),
        ({"expires_at": "2030-01-01T00:00:00"}, "/expires_at", "has no time zone; write it as in 2030-01-01"),
        ({"expires_at": "9999-12-31T23:59:59-12:00"}, "/expires_at", "is not an RFC 3339 time"),
        ({"expires_at": "0001-01-01T00:00:00+12:00"}, "/expires_at", "is not an RFC 3339 time"),
        ({"labels": ["a"]}, "/labels", "must be an object of text to text"),
        ({"labels": {"a": 1}}, "/labels", "must be an object of text to text"),
        ({"labels": {"a": None}}, "/labels", "must be an object of text to text"),
        ({"labels": {"k" * 65: ""}}, "/labels", "may hold 64 labels of up to 64 characters"),
        ({"labels": {"k": "v" * 257}}, "/labels", "with values of up to 256"),
        ({"labels": {str(n): "" for n in range(65)}}, "/labels", "may hold 64 labels"),
        ({"port": 80}, "/port", "unknown field"),
        ({"a/b~c": 1}, "/a~1b~0c", "unknown field"),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_place(fields: dict[str, Any], pointer: str, detail: str) -> None:
    ((at, told),) = faults(**fields)
    assert at == pointer
    assert detail in told


@pytest.mark.parametrize(
    ("fields", "pointer", "needed"),
    [
        ({"source_ports": 80, "protocols": ["icmp"]}, "/source_ports", "tcp, udp, udplite, sctp or dccp"),
        ({"destination_ports": 8, "protocols": 47}, "/destination_ports", "tcp, udp, udplite, sctp or dccp"),
        ({"icmp_types": 8, "protocols": ["tcp", "udp"]}, "/icmp_types", "icmp or icmpv6"),
        ({"tcp_flags": {"set": ["syn"]}, "protocols": ["udp"]}, "/tcp_flags", "tcp"),
    ],
)  # fmt: skip
def test_fields_that_need_a_protocol_say_which(fields: dict[str, Any], pointer: str, needed: str) -> None:
    assert faults(**fields) == [(pointer, f"needs {needed} among protocols")]


@pytest.mark.parametrize(
    "other", [{"source_ports": 1}, {"destination_ports": 1}, {"tcp_flags": {"set": ["syn"]}}]
)
def test_icmp_types_go_with_neither_ports_nor_flags(other: dict[str, Any]) -> None:
    ((pointer, detail),) = faults(icmp_types="8", **other)
    assert pointer == "/icmp_types" and "use two rules" in detail


@pytest.mark.parametrize("protocol", ["tcp", "udp", "udplite", "sctp", "dccp"])
def test_every_protocol_with_ports_may_be_asked_with_ports(protocol: str) -> None:
    assert rule(protocols=["icmp", protocol], destination_ports=[80]).destination_ports


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidInput) as raised:
        rule(prority=1, action="no", sources=["x", "10.0.0.0/8", "y"])
    pointers = [problem.pointer for problem in raised.value.problems]
    assert pointers == ["/prority", "/action", "/sources/0", "/sources/2"]
    assert raised.value.detail == "/prority: unknown field (and 3 more)"


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"prority": 1}, "the fields of a rule are action, description"),
        ({"sources": "10.0.0.1/8"}, "write the network itself, or a single address without a prefix length"),
        ({"source_ports": 1, "protocols": "gre"}, 'add the protocol, as in "protocols": ["tcp"]'),
        ({"priority": -1}, "see docs/rule-language.md"),
        ({"priority": -1, "sources": "10.0.0.1/8"}, "write the network itself"),
    ],
)
def test_a_fault_has_a_hint(fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        rule(**fields)
    assert raised.value.hint.startswith(hint)
    assert raised.value.hint in str(raised.value)


def test_an_unknown_field_is_told_which_there_are() -> None:
    with pytest.raises(InvalidInput) as raised:
        rule(prority=1)
    assert set(raised.value.hint.removeprefix("the fields of a rule are ").split(", ")) == {
        *Rule("r").fields(),
        "ttl",
    }


def test_the_problem_of_one_fault_is_its_detail() -> None:
    with pytest.raises(InvalidInput) as raised:
        rule(enabled=0)
    assert raised.value.detail == "/enabled: must be true or false"
    assert raised.value.problems == (Problem("/enabled", "must be true or false"),)


# --- ids


@pytest.mark.parametrize("text", ["a", "web-1", "A.b_c:d-9", "x" * 64])
def test_an_id_is_accepted(text: str) -> None:
    assert parse_id(text) == text


@pytest.mark.parametrize("value", ["", "x" * 65, "a b", "a/b", "a\n", "ä", "٣", None, 5])
def test_an_id_of_other_characters_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be 1 to 64 of the characters"):
        parse_id(value)


# --- lifetimes


def test_a_ttl_becomes_the_moment_of_expiry() -> None:
    made = rule(ttl="1h30m")
    assert (made.ttl_s, made.expires_at) == (5400, NOW + 5400)
    assert made.fields()["expires_at"] == "2023-11-14T23:43:20.250Z"


def test_a_ttl_wins_over_the_moment_that_was_read_before() -> None:
    assert rule(ttl=60, expires_at="2001-01-01T00:00:00Z").expires_at == NOW + 60


@given(st.floats(1, 4e9), st.integers(1, 10**6))
@example(now=1_700_000_000.123456, ttl=1)
def test_the_moment_of_expiry_is_read_again_as_written(now: float, ttl: int) -> None:
    made = rule_from_fields({"ttl": ttl}, "r", now)
    again = rule_from_fields(made.fields(), "r", now)
    assert again == replace(made, ttl_s=None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2030-01-01T00:00:00Z", 1893456000),
        ("2030-01-01T01:00:00+01:00", 1893456000),
        ("2030-01-01T00:00:00.250Z", 1893456000.25),
    ],
)
def test_a_time_is_read_with_its_zone(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds
    assert parse_time(format_time(seconds)) == seconds


@given(st.integers(0, 253402300799))
def test_a_time_is_read_again_as_written(seconds: int) -> None:
    assert parse_time(format_time(seconds)) == seconds
    assert format_time(seconds).endswith("Z")


# --- the same again


def test_the_same_ttl_again_is_the_same_although_the_clock_went_on() -> None:
    first, later = (rule_from_fields({"ttl": 60}, "r", now) for now in (NOW, NOW + 5))
    assert first != later
    assert first.asks_same_as(later) and later.asks_same_as(first)


def test_what_was_read_of_a_rule_with_a_ttl_is_the_same_rule() -> None:
    made = rule(ttl=60)
    assert made.asks_same_as(rule(**made.fields())) and rule(**made.fields()).asks_same_as(made)


@pytest.mark.parametrize(
    "fields",
    [{"ttl": 61}, {}, {"expires_at": "2030-01-01T00:00:00Z"}, {"ttl": 60, "description": "x"}],
)
def test_another_lifetime_or_field_is_not_the_same(fields: dict[str, Any]) -> None:
    assert not rule(ttl=60).asks_same_as(rule(**fields))
    assert not rule(**fields).asks_same_as(rule(ttl=60))


# --- what fields mean


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"priority": 0, "action": "allow"}, {"priority": 1, "action": "drop"}),
        ({"priority": 7, "action": "drop"}, {"priority": 7, "action": "allow"}),
        ({"priority": 65534, "action": "allow"}, {"priority": 65535, "action": "drop"}),
    ],
)
def test_the_smaller_rank_wins(better: dict[str, Any], worse: dict[str, Any]) -> None:
    assert rule(**better).rank < rule(**worse).rank


@pytest.mark.parametrize(("direction", "hooks"), [("ingress", (0,)), ("egress", (1,)), ("both", (0, 1))])
def test_a_direction_is_hooks(direction: str, hooks: tuple[int, ...]) -> None:
    assert rule(direction=direction).hooks == hooks


@pytest.mark.parametrize(
    "fields",
    [
        {"sources": "10.0.0.1"},
        {"destinations": ["10.0.0.0/8", "2001:db8::/32"]},
        {"sources": "10.0.0.1", "family": "ipv4", "direction": "both", "labels": {"a": "b"}, "ttl": 5},
        {"sources": "10.0.0.1", "enabled": False},
    ],
)
def test_addresses_of_one_side_are_all_that_an_address_rule_asks(fields: dict[str, Any]) -> None:
    assert rule(**fields).is_addresses_only


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"family": "ipv4"},
        {"sources": "10.0.0.1", "destinations": "10.0.0.2"},
        {"sources": "10.0.0.1", "interfaces": "eth0"},
        {"sources": "10.0.0.1", "protocols": "tcp"},
        {"sources": "10.0.0.1", "source_ports": 1},
        {"sources": "10.0.0.1", "destination_ports": 1},
        {"sources": "10.0.0.1", "icmp_types": 8},
        {"sources": "10.0.0.1", "tcp_flags": {"set": ["syn"]}},
    ],
)
def test_a_rule_that_asks_more_is_policy(fields: dict[str, Any]) -> None:
    assert not rule(**fields).is_addresses_only


@pytest.mark.parametrize(
    ("fields", "protocols"),
    [
        ({}, None),
        ({"sources": "10.0.0.1"}, None),
        ({"source_ports": 1}, {6, 17}),
        ({"destination_ports": 1}, {6, 17}),
        ({"tcp_flags": {"unset": ["ack"]}}, {6}),
        ({"tcp_flags": {"set": ["syn"]}, "source_ports": 1}, {6}),
        ({"icmp_types": "8"}, {1, 58}),
        ({"protocols": ["sctp", "gre"], "source_ports": 1}, {132, 47}),
    ],
)
def test_fields_imply_their_protocols(fields: dict[str, Any], protocols: set[int] | None) -> None:
    assert rule(**fields).effective_protocols() == protocols


def test_a_moment_of_expiry_in_the_past_is_no_fault_so_that_an_old_export_can_be_restored() -> None:
    assert rule(expires_at="2001-01-01T00:00:00Z").expires_at == 978307200
