"""The oracle against expectations written by hand, and the generators against what they promise.

It must not import the product: the oracle is judged here before it judges anything else.
"""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.oracle import Judgement, judge, parse
from tests.packets import CASES, DESTINATION4, DESTINATION6, SOURCE4, SOURCE6, Case
from tests.random_rules import FLAGS, Rule, random_frame, random_rules

REASONS = {
    "default",
    "not_ip",
    "malformed_link",
    "malformed_ipv4",
    "malformed_ipv6",
    "malformed_extension",
    "malformed_l4",
    "malformed_fragment",
}
READABLE = [case for case in CASES if case.expect.reason == "default"]
MALFORMED = [case for case in CASES if case.expect.reason.startswith("malformed")]


def name_of(case: Case) -> str:
    return case.name


PASS, DROP = Judgement("pass", "default"), Judgement("drop", "rule", "r")


def frame(payload: Packet, version: int = 4, **fields: Any) -> bytes:
    ethernet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    if version == 4:
        return bytes(ethernet / IP(src=SOURCE4, dst=DESTINATION4, **fields) / payload)
    return bytes(ethernet / IPv6(src=SOURCE6, dst=DESTINATION6, **fields) / payload)


SYN, SYN6 = frame(TCP(sport=40000, dport=22, flags="S")), frame(TCP(sport=40000, dport=22, flags="S"), 6)
DNS, PING = frame(UDP(sport=40001, dport=53)), frame(ICMP(type=8))


def verdict(rule: Rule, packet: bytes, **settings: Any) -> Judgement:
    """One rule, by default called "r" and in both directions, against one packet at ingress of eth0."""
    settings = {"direction": "ingress", "interface": "eth0"} | settings
    return judge([{"id": "r", "direction": "both"} | rule], packet, **settings)


def without_rules(case: Case, **settings: Any) -> Judgement:
    return judge([], case.frame, direction="ingress", interface="eth0", link=case.link, **settings)


# --- the table of packets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_packet_case_is_read_as_written_by_hand(case: Case) -> None:
    packet, expect = parse(case.frame, case.link), case.expect
    assert packet.reason == expect.reason
    assert (packet.version, packet.protocol) == (expect.version, expect.protocol)
    assert (packet.ports, packet.icmp, packet.tcp_flags) == (expect.ports, expect.icmp, expect.tcp_flags)
    assert packet.fragment == expect.fragment
    ends = {None: (None, None), 4: (SOURCE4, DESTINATION4), 6: (SOURCE6, DESTINATION6)}[expect.version]
    assert (packet.source, packet.destination) == tuple(end and ip_address(end) for end in ends)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_without_rules_only_what_is_malformed_is_dropped(case: Case) -> None:
    dropped = case.expect.reason.startswith("malformed")
    assert without_rules(case) == Judgement("drop" if dropped else "pass", case.expect.reason)


@pytest.mark.parametrize("case", READABLE, ids=name_of)
def test_a_rule_that_names_a_packets_fields_drops_it_and_one_that_names_others_does_not(case: Case) -> None:
    expect = case.expect
    version, protocol = expect.version, expect.protocol
    assert version is not None
    assert protocol is not None
    source, destination = (SOURCE4, DESTINATION4) if version == 4 else (SOURCE6, DESTINATION6)
    base: Rule = {"sources": [source], "destinations": [destination], "protocols": [protocol]}
    port_base: Rule = {"protocols": ["tcp", "udp", "udplite", "sctp", "dccp"]}
    assert verdict(base, case.frame, link=case.link) == DROP
    for other in ({"sources": [destination]}, {"destinations": [source]}, {"protocols": [protocol ^ 0x80]}):
        assert verdict(base | other, case.frame, link=case.link) == PASS
    source_port, destination_port = expect.ports or (22, 22)
    for ports in ({"source_ports": [source_port]}, {"destination_ports": [destination_port]}):
        assert verdict(port_base | ports, case.frame, link=case.link) == (DROP if expect.ports else PASS)
    assert (
        verdict(port_base | {"destination_ports": [destination_port + 1]}, case.frame, link=case.link) == PASS
    )
    icmp_type, code = expect.icmp or (8, 0)
    assert verdict({"icmp_types": [f"{icmp_type}/{code}"]}, case.frame, link=case.link) == (
        DROP if expect.icmp else PASS
    )
    for name in FLAGS:
        is_set, is_clear = (
            verdict({"tcp_flags": {which: [name]}}, case.frame, link=case.link) for which in ("set", "unset")
        )
        assert is_set == (DROP if expect.tcp_flags is not None and name in expect.tcp_flags else PASS)
        assert is_clear == (DROP if expect.tcp_flags is not None and name not in expect.tcp_flags else PASS)


def test_the_table_is_well_formed_and_reaches_every_reason() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []
    assert {case.expect.reason for case in CASES} == REASONS
    assert all(len(case.frame) >= 14 for case in CASES if case.link == "ethernet")


@pytest.mark.parametrize("size", range(14))
def test_a_frame_that_ends_within_its_ethernet_header_is_malformed(size: int) -> None:
    assert verdict({}, SYN[:size]) == Judgement("drop", "malformed_link")


# --- settings ----------------------------------------------------------------------------------------------


def test_the_default_action_decides_what_no_rule_matches() -> None:
    elsewhere = {"sources": ["203.0.113.1"]}
    assert verdict(elsewhere, SYN, default_action="allow") == PASS
    assert verdict(elsewhere, SYN, default_action="drop") == Judgement("drop", "default")
    assert verdict({"action": "allow"}, SYN, default_action="drop") == Judgement("pass", "rule", "r")


@pytest.mark.parametrize("case", [case for case in CASES if case.expect.reason == "not_ip"], ids=name_of)
def test_nothing_drops_a_frame_that_is_not_ip(case: Case) -> None:
    settings = {"default_action": "drop", "fragments": "drop", "malformed": "drop"}
    assert verdict({}, case.frame, **settings) == Judgement("pass", "not_ip")


def test_fragments_drop_takes_every_fragment_before_any_rule_and_nothing_else() -> None:
    allow_all = {"action": "allow", "priority": 0}
    for case in READABLE:
        judgement = verdict(allow_all, case.frame, link=case.link, fragments="drop")
        expected = Judgement("drop", "fragment") if case.expect.fragment else Judgement("pass", "rule", "r")
        assert judgement == expected, case.name


@pytest.mark.parametrize("case", MALFORMED, ids=name_of)
def test_malformed_drop_comes_before_any_rule_and_before_fragments_drop(case: Case) -> None:
    for fragments in ("match", "drop"):
        judgement = verdict({"action": "allow"}, case.frame, link=case.link, fragments=fragments)
        assert judgement == Judgement("drop", case.expect.reason)


@pytest.mark.parametrize("case", MALFORMED, ids=name_of)
def test_malformed_pass_asks_the_rules_only_where_addresses_are_known(case: Case) -> None:
    settings = {"link": case.link, "malformed": "pass", "default_action": "drop"}
    addresses_known = case.expect.reason in ("malformed_extension", "malformed_l4", "malformed_fragment")
    passed = Judgement("pass", case.expect.reason)
    assert without_rules(case, malformed="pass", default_action="drop") == passed
    assert verdict({}, case.frame, **settings) == (DROP if addresses_known else passed)
    assert verdict({"sources": ["203.0.113.1"]}, case.frame, **settings) == passed
    if addresses_known:
        source = SOURCE4 if case.expect.version == 4 else SOURCE6
        rule = {"sources": [source], "protocols": [case.expect.protocol]}
        assert verdict(rule, case.frame, **settings) == DROP
    for asks_l4 in (
        {"destination_ports": ["0-65535"]},
        {"tcp_flags": {"unset": ["syn"]}},
        {"icmp_types": ["8"]},
    ):
        assert verdict(asks_l4, case.frame, **settings) == passed


def test_malformed_pass_does_not_save_a_fragment_from_fragments_drop() -> None:
    short_first = frame(Raw(bytes(8)), flags="MF", proto=6)
    assert verdict({}, short_first, fragments="drop") == Judgement("drop", "malformed_fragment")
    assert verdict({}, short_first, fragments="drop", malformed="pass") == Judgement("drop", "fragment")


# --- which rule wins ---------------------------------------------------------------------------------------


def winner(*rules: Rule) -> str | None:
    numbered = [{"id": f"r{number}"} | rule for number, rule in enumerate(rules)]
    return judge(numbered, SYN, direction="ingress", interface="eth0").rule_id


def test_the_lowest_priority_number_wins_whatever_the_action_and_the_prefix() -> None:
    assert winner({"priority": 5}, {"priority": 4, "action": "allow"}) == "r1"
    assert winner({"priority": 5, "sources": [SOURCE4]}, {"priority": 4, "sources": ["0.0.0.0/0"]}) == "r1"
    assert winner({"priority": 10}, {"priority": 9}, {"priority": 100}) == "r1"
    assert winner({"priority": 0, "action": "allow"}, {"priority": 65535}) == "r0"


def test_at_equal_priority_drop_beats_allow() -> None:
    assert winner({"action": "allow"}, {"action": "drop"}) == "r1"
    assert winner({"action": "drop"}, {"action": "allow"}) == "r0"
    assert winner({"action": "allow", "sources": [SOURCE4]}, {"sources": ["0.0.0.0/0"]}) == "r1"


def test_among_equals_the_older_rule_wins() -> None:
    assert winner({"sources": ["192.0.2.0/24"]}, {"sources": [SOURCE4]}) == "r0"
    assert winner({"action": "allow"}, {"action": "allow"}) == "r0"


def test_priority_is_1000_and_action_is_drop_where_a_rule_does_not_say() -> None:
    assert winner({"action": "allow", "priority": 1000}, {}) == "r1"
    assert winner({"action": "allow", "priority": 999}, {}) == "r0"
    assert winner({"action": "allow", "priority": 1001}, {}) == "r1"


def test_a_rule_that_does_not_match_or_is_disabled_does_not_win() -> None:
    assert winner({"priority": 0, "sources": ["203.0.113.1"]}, {}) == "r1"
    assert winner({"priority": 0, "enabled": False}, {}) == "r1"
    assert winner({"enabled": False}) is None


def test_an_allow_exception_of_better_priority_passes_inside_a_dropped_network() -> None:
    network: Rule = {"id": "net", "sources": ["192.0.2.0/24"]}
    host: Rule = {"id": "host", "sources": [SOURCE4], "priority": 10, "action": "allow"}
    assert judge([network, host], SYN, direction="ingress", interface="eth0") == Judgement(
        "pass", "rule", "host"
    )


# --- match fields ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "packet", "matches"),
    [
        ({}, SYN, True),
        ({"sources": SOURCE4}, SYN, True),
        ({"sources": ["192.0.2.0/24"]}, SYN, True),
        ({"sources": ["192.0.2.0/29"]}, SYN, True),
        ({"sources": ["192.0.2.8/29"]}, SYN, False),
        ({"sources": ["0.0.0.0/0"]}, SYN, True),
        ({"sources": ["0.0.0.0/0"]}, SYN6, False),
        ({"sources": ["::/0"]}, SYN, False),
        ({"sources": ["::/0"]}, SYN6, True),
        ({"sources": ["2001:db8:1::/48"]}, SYN6, True),
        ({"sources": ["2001:db8:2::/48"]}, SYN6, False),
        ({"sources": ["203.0.113.1", SOURCE6]}, SYN6, True),
        ({"destinations": [SOURCE4]}, SYN, False),
        ({"destinations": [DESTINATION4]}, SYN, True),
        ({"sources": [SOURCE4], "destinations": ["203.0.113.1"]}, SYN, False),
        ({"family": "any"}, SYN6, True),
        ({"family": "ipv4"}, SYN, True),
        ({"family": "ipv4"}, SYN6, False),
        ({"family": "ipv6"}, SYN6, True),
        ({"family": "ipv6", "sources": ["0.0.0.0/0"]}, SYN, False),
        ({"protocols": ["tcp"]}, SYN, True),
        ({"protocols": "tcp"}, SYN6, True),
        ({"protocols": ["udp"]}, SYN, False),
        ({"protocols": ["udp", 6]}, SYN, True),
        ({"protocols": ["6"]}, SYN, True),
        ({"protocols": ["icmpv6"]}, PING, False),
        ({"protocols": ["gre"]}, frame(Raw(b"\0\0\x08\0"), proto=47), True),
        ({"protocols": [0]}, frame(Raw(b"\0\0\x08\0"), proto=0), True),
        ({"destination_ports": ["22"]}, SYN, True),
        ({"destination_ports": [22]}, SYN6, True),
        ({"destination_ports": 22}, SYN, True),
        ({"destination_ports": ["23", "20-22"]}, SYN, True),
        ({"destination_ports": ["22-22"]}, SYN, True),
        ({"destination_ports": ["23-65535", "0-21"]}, SYN, False),
        ({"source_ports": ["22"]}, SYN, False),
        ({"source_ports": ["40000-40001"], "destination_ports": ["53"]}, DNS, True),
        ({"source_ports": ["40000-40001"], "destination_ports": ["53"]}, SYN, False),
        ({"destination_ports": ["0-65535"]}, PING, False),
        ({"destination_ports": ["53"], "protocols": ["tcp", "gre"]}, DNS, False),
        (
            {"destination_ports": ["0-65535"], "protocols": ["tcp", "gre"]},
            frame(Raw(bytes(8)), proto=47),
            False,
        ),
        ({"destination_ports": ["0-65535"]}, frame(Raw(bytes(12)), proto=132), False),
        ({"destination_ports": ["0-65535"], "protocols": ["sctp"]}, frame(Raw(bytes(12)), proto=132), True),
        ({"icmp_types": ["8"]}, PING, True),
        ({"icmp_types": ["8/0"]}, PING, True),
        ({"icmp_types": ["8/1", "80"]}, PING, False),
        ({"icmp_types": ["3/1"]}, frame(ICMP(type=3, code=1)), True),
        ({"icmp_types": ["3"]}, frame(ICMP(type=3, code=1)), True),
        ({"icmp_types": ["128"]}, frame(Raw(b"\x80\0\0\0"), 6, nh=58), True),
        ({"icmp_types": ["128"], "protocols": ["icmp"]}, frame(Raw(b"\x80\0\0\0"), 6, nh=58), False),
        ({"icmp_types": ["8"], "protocols": ["icmp", "tcp"]}, SYN, False),
        ({"tcp_flags": {"set": ["syn"], "unset": ["ack"]}}, SYN, True),
        ({"tcp_flags": {"set": ["syn", "ack"]}}, SYN, False),
        ({"tcp_flags": {"set": ["syn", "ack"]}}, frame(TCP(flags="SAP")), True),
        ({"tcp_flags": {"unset": ["syn"]}}, SYN, False),
        ({"tcp_flags": {"unset": ["fin", "rst", "psh", "ack", "urg", "ece", "cwr"]}}, SYN, True),
        ({"tcp_flags": {"unset": ["ack"]}}, DNS, False),
        ({"tcp_flags": {"unset": ["ack"]}, "protocols": ["tcp", "udp"]}, DNS, False),
        ({"tcp_flags": {"set": ["syn"]}, "destination_ports": ["22"]}, SYN, True),
        ({"tcp_flags": {"set": ["syn"]}, "destination_ports": ["23"]}, SYN, False),
        ({"tcp_flags": None, "icmp_types": [], "source_ports": [], "protocols": []}, DNS, True),
        ({"description": "text", "labels": {"a": "b"}, "ttl": "1h"}, SYN, True),
    ],
)
def test_a_rule_matches_exactly_what_its_fields_name(rule: Rule, packet: bytes, matches: bool) -> None:
    assert verdict(rule, packet) == (DROP if matches else PASS)


@pytest.mark.parametrize(
    ("rule_direction", "ingress", "egress"),
    [({}, DROP, PASS), ("ingress", DROP, PASS), ("egress", PASS, DROP), ("both", DROP, DROP)],
)
def test_a_rule_holds_in_its_own_direction(
    rule_direction: Any, ingress: Judgement, egress: Judgement
) -> None:
    rule = {"id": "r"} | ({"direction": rule_direction} if rule_direction else {})
    assert judge([rule], SYN, direction="ingress", interface="eth0") == ingress
    assert judge([rule], SYN, direction="egress", interface="eth0") == egress


@pytest.mark.parametrize(
    ("interfaces", "matches"),
    [
        ([], True), (["eth0"], True), (["eth*"], True), ("eth?", True), (["lan0", "eth[01]"], True),
        (["*"], True), (["eth"], False), (["eth1"], False), (["ETH0"], False), (["?th"], False),
    ],
)  # fmt: skip
def test_a_rule_holds_on_the_interfaces_its_globs_name(interfaces: Any, matches: bool) -> None:
    assert verdict({"interfaces": interfaces}, SYN) == (DROP if matches else PASS)


def test_a_later_fragment_is_matched_by_address_and_protocol_but_never_by_ports_flags_or_type() -> None:
    later4 = frame(TCP(sport=40000, dport=22, flags="S"), frag=185)
    later6 = frame(IPv6ExtHdrFragment(nh=6, offset=185) / TCP(sport=40000, dport=22, flags="S"), 6)
    for packet, source in ((later4, SOURCE4), (later6, SOURCE6)):
        assert verdict({"sources": [source], "protocols": ["tcp"]}, packet) == DROP
        for field in (
            {"source_ports": ["0-65535"]},
            {"destination_ports": ["0-65535"]},
            {"tcp_flags": {"unset": ["fin"]}},
        ):
            assert verdict(field | {"protocols": ["tcp"]}, packet) == PASS
    assert verdict({"icmp_types": ["8"]}, frame(ICMP(type=8), frag=1)) == PASS


def test_a_misspelt_rule_field_is_an_error_of_the_test_and_not_a_rule_for_every_packet() -> None:
    with pytest.raises(ValueError, match="source_port"):
        verdict({"source_port": [22]}, SYN)


# --- the generators ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_rules_and_frames() -> None:
    def draw(seed: int) -> tuple[list[Rule], list[bytes]]:
        rng = random.Random(seed)
        return random_rules(rng, 20, ["eth0", "lan*"]), [random_frame(rng) for _ in range(20)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_random_rules_are_valid_for_the_api() -> None:
    rules = random_rules(random.Random(7), 5000, ["eth0", "eth*"])
    assert [rule["id"] for rule in rules] == [f"r{number}" for number in range(5000)]
    for rule in rules:
        protocols = set(map(str, rule.get("protocols", [])))
        has_ports = "source_ports" in rule or "destination_ports" in rule
        if has_ports and protocols:
            assert protocols & {"tcp", "udp", "udplite", "sctp", "dccp", "6", "17", "132"}
        if "icmp_types" in rule:
            assert not has_ports
            assert "tcp_flags" not in rule
            assert not protocols or protocols & {"icmp", "icmpv6", "1", "58"}
        if "tcp_flags" in rule and protocols:
            assert "tcp" in protocols
        for side in ("sources", "destinations"):
            prefixes = rule.get(side, [])
            for prefix in [prefixes] if isinstance(prefixes, str) else prefixes:
                ip_network(prefix)  # raises on host bits
        assert set(rule.get("interfaces", [])) <= {"eth0", "eth*"}
    assert 150 < sum(rule.get("enabled", True) is False for rule in rules) < 350


def test_random_rules_name_no_interface_unless_they_are_given_some() -> None:
    assert not any("interfaces" in rule for rule in random_rules(random.Random(7), 500))


def test_random_frames_reach_every_reason_and_collide_with_random_rules() -> None:
    rng = random.Random(11)
    judged: Counter[tuple[str, str]] = Counter()
    for _ in range(300):
        rules = random_rules(rng, 10)
        for link in ("ethernet", "ethernet", "ip"):
            for _ in range(5):
                packet = random_frame(rng, link)
                assert len(packet) >= 14
                settings = {"direction": rng.choice(("ingress", "egress")), "interface": "eth0", "link": link}
                judgement = judge(rules, packet, **settings)
                judged[judgement.verdict, judgement.reason] += 1
    assert {reason for _, reason in judged} == REASONS | {"rule"}
    assert judged["drop", "rule"] > 450
    assert judged["pass", "rule"] > 300
    assert judged["pass", "default"] > 900


# --- rules that observe


def test_a_rule_that_observes_decides_nothing_and_is_named_where_it_would_have() -> None:
    rules = [
        {"id": "watch", "mode": "observe", "priority": 5},
        {"id": "allow", "action": "allow", "priority": 10},
        {"id": "same", "mode": "observe", "action": "allow", "priority": 10},
        {"id": "late", "mode": "observe", "priority": 20},
    ]
    found = judge(rules, SYN, direction="ingress", interface="eth0")
    assert (found.verdict, found.rule_id, found.observed) == ("pass", "allow", ("watch",))
    alone = judge(rules[:1], SYN, direction="ingress", interface="eth0")
    assert (alone.verdict, alone.reason, alone.observed) == ("pass", "default", ("watch",))
