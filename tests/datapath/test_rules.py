"""What a rule means, sentence by sentence (docs/rule-language.md), in the verdicts of the loaded programs.

Every test shows a packet that the rule meets and one beside it that it does not. Rules are in the API's form.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from firewall.errors import InvalidInput
from tests.datapath.frames import icmp, icmp6, protocol, tcp, udp
from tests.datapath.loaded import ELSEWHERE, HERE, Judged, Loaded

PASSES, DROPPED, ALLOWED = Judged("pass", "default"), Judged("drop", "rule"), Judged("pass", "rule")
DEFAULT_DROP = Judged("drop", "default")
HERE_NAME, ELSEWHERE_NAME = "pretended-interface-0", "pretended-interface-1"
# With a protocol, a rule that would be an address rule is a policy rule: the other structure.
STRUCTURES = pytest.mark.parametrize(
    "more", [{}, {"protocols": ["tcp"]}], ids=["address rule", "policy rule"]
)
BOTH_HOOKS = pytest.mark.parametrize("hook", ["ingress", "egress"])
FAMILIES = pytest.mark.parametrize("version", [4, 6])


def judged(firewall: Loaded, *frames: bytes, hook: str = "ingress") -> list[Judged]:
    return [firewall.judge(frame, hook) for frame in frames]


# --- addresses ---------------------------------------------------------------------------------------------


@STRUCTURES
@pytest.mark.parametrize(
    ("listed", "met", "missed"),
    [
        ("203.0.113.7", ["203.0.113.7"], ["203.0.113.6", "203.0.113.8"]),
        ("203.0.113.0/24", ["203.0.113.0", "203.0.113.255"], ["203.0.112.255", "203.0.114.0"]),
        ("10.0.0.0/8", ["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::", "2001:db8::1"]),
        ("2001:db8::7", ["2001:db8::7"], ["2001:db8::6", "2001:db8::8"]),
        ("2001:db8::/32", ["2001:db8::", "2001:db8:ffff::1"], ["2001:db7:ffff::1", "2001:db9::"]),
        ("2001:db8:0:8000::/49", ["2001:db8:0:8000::1"], ["2001:db8:0:7fff::1", "2001:db8:1::1"]),
        ("8000::/1", ["8000::", "ff02::1"], ["7fff::", "::1"]),
        ("::/0", ["::", "ff02::1"], ["0.0.0.0", "192.0.2.1"]),
    ],
)
def test_a_source_is_an_address_or_a_network(
    firewall: Loaded, listed: str, met: list[str], missed: list[str], more: dict[str, Any]
) -> None:
    frames = [tcp(source) for source in (*met, *missed)]
    assert judged(firewall, *frames) == [PASSES] * len(frames)
    firewall.rules({"sources": [listed], **more})
    assert judged(firewall, *frames) == [DROPPED] * len(met) + [PASSES] * len(missed)


@STRUCTURES
def test_sources_are_sources_and_destinations_are_destinations(
    firewall: Loaded, more: dict[str, Any]
) -> None:
    for version, (one, other) in {4: ("10.1.1.1", "10.2.2.2"), 6: ("2001:db8::1", "2001:db8::2")}.items():
        firewall.rules({"sources": [one], **more})
        assert judged(firewall, tcp(one, other), tcp(other, one)) == [DROPPED, PASSES], version
        firewall.rules({"destinations": [one], **more})
        assert judged(firewall, tcp(one, other), tcp(other, one)) == [PASSES, DROPPED], version


def test_a_rule_with_sources_and_destinations_asks_for_both(firewall: Loaded) -> None:
    firewall.rules({"sources": ["10.1.0.0/16"], "destinations": ["10.2.0.0/16"]})
    assert judged(firewall, tcp("10.1.0.1", "10.2.0.1")) == [DROPPED]
    assert judged(firewall, tcp("10.1.0.1", "10.3.0.1"), tcp("10.3.0.1", "10.2.0.1")) == [PASSES] * 2


@STRUCTURES
def test_within_a_list_any_element_matches_and_one_rule_may_mix_families(
    firewall: Loaded, more: dict[str, Any]
) -> None:
    firewall.rules({"sources": ["10.0.0.1", "10.0.1.0/24", "2001:db8::1", "2001:db8:1::/48"], **more})
    met = ("10.0.0.1", "10.0.1.77", "2001:db8::1", "2001:db8:1::77")
    assert judged(firewall, *map(tcp, met)) == [DROPPED] * 4
    assert judged(firewall, tcp("10.0.2.1"), tcp("2001:db8:2::1")) == [PASSES] * 2
    assert firewall.hits("r0") == (4, sum(len(tcp(source)) for source in met))


def test_a_string_stands_for_a_list_of_one(firewall: Loaded) -> None:
    firewall.rules({"sources": "203.0.113.7"})
    assert judged(firewall, tcp("203.0.113.7"), tcp("203.0.113.8")) == [DROPPED, PASSES]


def test_a_network_with_host_bits_is_refused_with_the_network_that_was_meant(firewall: Loaded) -> None:
    with pytest.raises(InvalidInput, match=r"203\.0\.113\.0/24"):
        firewall.rules({"sources": ["203.0.113.7/24"]})


@STRUCTURES
def test_a_family_narrows_the_addresses(firewall: Loaded, more: dict[str, Any]) -> None:
    addresses = ["10.0.0.0/8", "2001:db8::/32"]
    frames = tcp("10.0.0.1"), tcp("2001:db8::1")
    firewall.rules({"sources": addresses, "family": "any", **more})
    assert judged(firewall, *frames) == [DROPPED, DROPPED]
    firewall.rules({"sources": addresses, "family": "ipv4", **more})
    assert judged(firewall, *frames) == [DROPPED, PASSES]
    firewall.rules({"sources": addresses, "family": "ipv6", **more})
    assert judged(firewall, *frames) == [PASSES, DROPPED]


def test_a_rule_without_any_field_matches_every_packet_of_its_direction(firewall: Loaded) -> None:
    firewall.rules({})
    assert judged(firewall, tcp(), udp("2001:db8::1"), icmp(8), protocol(253)) == [DROPPED] * 4
    assert judged(firewall, tcp(), hook="egress") == [PASSES]


# --- nested prefixes ---------------------------------------------------------------------------------------


def nested(version: int) -> list[str]:
    """Around one address, the network of every length."""
    address = {4: "203.0.113.171", 6: "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ab"}[version]
    return [
        str(ip_network(f"{address}/{length}", strict=False)) for length in range({4: 33, 6: 129}[version])
    ]


def inside_only(networks: list[str], length: int) -> str:
    """An address in the network of this length and in no longer one."""
    bits = len(networks) - 1
    address = ip_address(networks[-1].partition("/")[0])
    return str(address if length == bits else type(address)(int(address) ^ 1 << (bits - length - 1)))


@STRUCTURES
@FAMILIES
@BOTH_HOOKS
def test_every_prefix_length_is_told_from_its_neighbours(
    firewall: Loaded, version: int, hook: str, more: dict[str, Any]
) -> None:
    """Rules drop and allow in turns, the longest prefix first: each address meets the rule of its length."""
    networks = nested(version)
    bits = len(networks) - 1
    firewall.rules(
        *(
            {
                "id": f"length-{length}",
                "sources": [network],
                "direction": hook,
                "priority": bits - length,
                "action": "allow" if length % 2 else "drop",
                **more,
            }
            for length, network in enumerate(networks)
        )
    )
    for length in range(bits + 1):
        frame = tcp(inside_only(networks, length))
        assert judged(firewall, frame, hook=hook) == [ALLOWED if length % 2 else DROPPED], length
        assert firewall.all_hits()[f"length-{length}"] == (1, len(frame))


@STRUCTURES
@FAMILIES
def test_the_shortest_prefix_wins_where_its_number_is_lower(
    firewall: Loaded, version: int, more: dict[str, Any]
) -> None:
    """It is the priority that decides, not the length."""
    networks = nested(version)
    firewall.rules(
        *(
            {"id": f"length-{length}", "sources": [network], "priority": length, "action": "allow", **more}
            for length, network in enumerate(networks)
        ),
    )
    frames = [tcp(inside_only(networks, length)) for length in range(len(networks))]
    assert set(judged(firewall, *frames)) == {ALLOWED}
    assert set(firewall.all_hits()) == {"length-0"}


@STRUCTURES
@FAMILIES
def test_deleting_one_of_many_nested_rules_gives_back_just_its_packets(
    firewall: Loaded, version: int, more: dict[str, Any]
) -> None:
    networks = nested(version)[1:]
    firewall.rules(*({"id": f"n{i}", "sources": [network], **more} for i, network in enumerate(networks)))
    networks = nested(version)
    frames = [tcp(inside_only(networks, length)) for length in range(len(networks))]
    assert judged(firewall, *frames) == [PASSES] + [DROPPED] * (len(frames) - 1)
    for length in range(1, len(networks)):
        firewall.delete(f"n{length - 1}")
        left = [PASSES] * (length + 1) + [DROPPED] * (len(frames) - 1 - length)
        if length % 8 == 0 or len(networks) - length < 4:
            assert judged(firewall, *frames) == left, length
    assert judged(firewall, *frames) == [PASSES] * len(frames)


# --- protocols, ports, types, flags ------------------------------------------------------------------------


@FAMILIES
def test_a_protocol_is_a_name_or_a_number(firewall: Loaded, version: int) -> None:
    names: dict[str | int, int] = {"tcp": 6, "udp": 17, "sctp": 132, "gre": 47, "esp": 50, "udplite": 136}
    for name, number in (names | {47: 47, "253": 253}).items():
        firewall.rules({"protocols": [name]})
        assert judged(firewall, protocol(number, version)) == [DROPPED], name
        assert judged(firewall, protocol(number ^ 0x80, version)) == [PASSES], name


def test_one_rule_may_mix_tcp_with_udp(firewall: Loaded) -> None:
    firewall.rules({"protocols": ["tcp", "udp"], "destination_ports": [53]})
    assert judged(firewall, tcp(dport=53), udp(dport=53)) == [DROPPED] * 2
    assert judged(firewall, tcp(dport=54), udp(dport=54), icmp(8)) == [PASSES] * 3


@pytest.mark.parametrize("field", ["source_ports", "destination_ports"])
def test_ports_are_numbers_and_ranges_with_both_ends(firewall: Loaded, field: str) -> None:
    def frame(port: int, *, here: bool = True) -> bytes:
        return tcp(sport=port) if (field == "source_ports") == here else tcp(dport=port)

    firewall.rules({"protocols": ["tcp"], field: [22, "80", "8000-8100", "65535", "0"]})
    met, missed = (0, 22, 80, 8000, 8050, 8100, 65535), (1, 21, 23, 79, 81, 7999, 8101, 65534)
    assert judged(firewall, *map(frame, met)) == [DROPPED] * len(met)
    assert judged(firewall, *map(frame, missed)) == [PASSES] * len(missed)
    assert judged(firewall, *(frame(port, here=False) for port in met)) == [PASSES] * len(met)


def test_ports_without_protocols_mean_tcp_and_udp(firewall: Loaded) -> None:
    firewall.rules({"destination_ports": ["0-65535"]})
    assert judged(firewall, tcp(), udp(), tcp("2001:db8::1")) == [DROPPED] * 3
    assert judged(firewall, protocol(132), protocol(136), protocol(33), protocol(47), icmp(8)) == [PASSES] * 5


def test_overlapping_port_ranges_of_several_rules_are_kept_apart(firewall: Loaded) -> None:
    firewall.rules(
        {"id": "wide", "destination_ports": ["1000-2000"], "priority": 20},
        {"id": "hole", "destination_ports": ["1400-1600", "1500-1700"], "priority": 10, "action": "allow"},
        {"id": "point", "destination_ports": [1500], "priority": 5},
    )
    expected = {999: PASSES, 1000: DROPPED, 1399: DROPPED, 1400: ALLOWED, 1499: ALLOWED, 1500: DROPPED}
    expected |= {1501: ALLOWED, 1700: ALLOWED, 1701: DROPPED, 2000: DROPPED, 2001: PASSES}
    assert judged(firewall, *(tcp(dport=port) for port in expected)) == list(expected.values())


def test_an_icmp_type_may_have_a_code(firewall: Loaded) -> None:
    firewall.rules({"icmp_types": ["8", "3/1"], "protocols": ["icmp"]})
    assert judged(firewall, icmp(8), icmp(8, 5), icmp(3, 1)) == [DROPPED] * 3
    assert judged(firewall, icmp(3, 0), icmp(3, 2), icmp(0), icmp(9)) == [PASSES] * 4


def test_icmp_types_without_protocols_mean_icmp_and_icmpv6(firewall: Loaded) -> None:
    firewall.rules({"icmp_types": [128, "1/4"]})
    assert judged(firewall, icmp6(128), icmp6(1, 4), icmp(128)) == [DROPPED] * 3
    assert judged(firewall, icmp6(129), icmp6(1, 3)) == [PASSES] * 2
    firewall.rules({"icmp_types": [128], "protocols": ["icmpv6"]})
    assert judged(firewall, icmp6(128), icmp(128)) == [DROPPED, PASSES]


def test_tcp_flags_are_those_that_must_be_set_and_those_that_must_not(firewall: Loaded) -> None:
    firewall.rules({"tcp_flags": {"set": ["syn"], "unset": ["ack"]}})
    assert judged(firewall, tcp(flags="S"), tcp(flags="SFPUEC")) == [DROPPED] * 2
    assert judged(firewall, tcp(flags="SA"), tcp(flags="A"), tcp(flags=""), udp()) == [PASSES] * 4
    firewall.rules({"tcp_flags": {"unset": ["syn", "ack", "rst", "fin", "psh", "urg"]}})
    assert judged(firewall, tcp(flags=""), tcp(flags="E")) == [DROPPED] * 2
    assert judged(firewall, tcp(flags="F")) == [PASSES]


def test_flags_and_ports_of_one_rule_must_both_match(firewall: Loaded) -> None:
    firewall.rules({"tcp_flags": {"set": ["syn"], "unset": ["ack"]}, "destination_ports": [22]})
    assert judged(firewall, tcp(dport=22)) == [DROPPED]
    assert judged(firewall, tcp(dport=23), tcp(dport=22, flags="SA"), udp(dport=22)) == [PASSES] * 3


def test_a_rule_matches_when_every_field_does(firewall: Loaded) -> None:
    rule = {
        "family": "ipv4", "sources": ["10.1.1.1"], "destinations": ["10.2.0.0/16"], "protocols": ["tcp"],
        "source_ports": ["1000-2000"], "destination_ports": [80], "tcp_flags": {"set": ["ack"]},
        "interfaces": [HERE_NAME],
    }  # fmt: skip
    frame = tcp("10.1.1.1", "10.2.3.4", 1500, 80, "A")
    firewall.rules(rule)
    assert judged(firewall, frame) == [DROPPED]
    others = {
        "sources": ["10.1.1.2"], "destinations": ["10.3.0.0/16"], "protocols": ["udp", "sctp"],
        "source_ports": [1501], "destination_ports": [81], "tcp_flags": {"set": ["ack"], "unset": ["psh", "syn"]},
        "interfaces": [ELSEWHERE_NAME],
    }  # fmt: skip
    for field, value in others.items():
        changed = {**rule, field: value}
        if field == "protocols":
            changed["tcp_flags"] = None
        firewall.rules(changed)
        expected = DROPPED if field == "tcp_flags" else PASSES  # ack alone also lacks psh and syn
        assert judged(firewall, frame) == [expected], field


# --- who wins ----------------------------------------------------------------------------------------------

DESTINATION = {"destinations": ["198.51.100.200"]}
CIDR: dict[str, Any] = {"sources": ["10.0.0.0/8"]}
HOST: dict[str, Any] = {"sources": ["10.0.0.7"]}
PORT: dict[str, Any] = {"protocols": ["tcp"], "destination_ports": [50001]}


@pytest.mark.parametrize(
    ("first", "second"),
    [(CIDR, HOST), (HOST, CIDR), (CIDR, PORT), (PORT, CIDR), (PORT, {**PORT, **HOST}), (DESTINATION, HOST)],
    ids=["address, address", "longer first", "address, policy", "policy, address", "policy, policy", "sides"],
)
@BOTH_HOOKS
def test_the_lowest_priority_number_wins_whatever_structure_holds_it(
    firewall: Loaded, first: dict[str, Any], second: dict[str, Any], hook: str
) -> None:
    frame = tcp("10.0.0.7")
    for lower, upper in (("drop", "allow"), ("allow", "drop")):
        for numbers in ((0, 1), (999, 1000), (0, 65535), (65534, 65535)):
            low, high = ({"priority": number, "direction": hook} for number in numbers)
            firewall.rules({**first, **low, "action": lower}, {**second, **high, "action": upper})
            assert judged(firewall, frame, hook=hook) == [DROPPED if lower == "drop" else ALLOWED]
            assert set(firewall.all_hits()) == {"r0"}


@pytest.mark.parametrize("first", [CIDR, HOST, PORT], ids=["network", "host", "port"])
@pytest.mark.parametrize("second", [CIDR, HOST, PORT], ids=["network", "host", "port"])
def test_at_equal_priority_drop_beats_allow(
    firewall: Loaded, first: dict[str, Any], second: dict[str, Any]
) -> None:
    for priority in (0, 1000, 65535):
        firewall.rules(
            {**first, "action": "allow", "priority": priority},
            {**second, "action": "drop", "priority": priority},
        )
        assert judged(firewall, tcp("10.0.0.7")) == [DROPPED]
        assert set(firewall.all_hits()) == {"r1"}


@STRUCTURES
def test_of_two_rules_of_one_rank_the_older_counts(firewall: Loaded, more: dict[str, Any]) -> None:
    firewall.rules({**HOST, **more}, {**HOST, **more})
    judged(firewall, tcp("10.0.0.7"))
    assert set(firewall.all_hits()) == {"r0"}


def test_a_host_can_be_allowed_within_a_dropped_network(firewall: Loaded) -> None:
    firewall.rules({**CIDR}, {**HOST, "action": "allow", "priority": 10})
    assert judged(firewall, tcp("10.0.0.7"), tcp("10.0.0.8")) == [ALLOWED, DROPPED]


def test_the_default_priority_is_1000_and_the_default_action_drop(firewall: Loaded) -> None:
    firewall.rules({**CIDR}, {**HOST, "action": "allow", "priority": 1001})
    assert judged(firewall, tcp("10.0.0.7")) == [DROPPED]
    firewall.rules({**CIDR}, {**HOST, "action": "allow", "priority": 999})
    assert judged(firewall, tcp("10.0.0.7")) == [ALLOWED]


@STRUCTURES
def test_a_disabled_rule_matches_nothing_until_it_is_enabled(firewall: Loaded, more: dict[str, Any]) -> None:
    firewall.rules({**HOST, **more, "enabled": False})
    assert judged(firewall, tcp("10.0.0.7")) == [PASSES]
    firewall.edit("r0", enabled=True)
    assert judged(firewall, tcp("10.0.0.7")) == [DROPPED]
    firewall.edit("r0", enabled=False)
    assert judged(firewall, tcp("10.0.0.7")) == [PASSES]
    assert firewall.hits("r0") == (1, len(tcp("10.0.0.7")))


# --- directions, interfaces, defaults ----------------------------------------------------------------------


@STRUCTURES
def test_a_direction_is_ingress_by_default_egress_or_both(firewall: Loaded, more: dict[str, Any]) -> None:
    frame = tcp("10.0.0.7")
    for direction, ingress, egress in (
        (None, DROPPED, PASSES),
        ("ingress", DROPPED, PASSES),
        ("egress", PASSES, DROPPED),
        ("both", DROPPED, DROPPED),
    ):
        firewall.rules({**HOST, **more} | ({"direction": direction} if direction else {}))
        assert judged(firewall, frame) + judged(firewall, frame, hook="egress") == [ingress, egress]


@STRUCTURES
def test_a_rule_of_both_directions_counts_both(firewall: Loaded, more: dict[str, Any]) -> None:
    firewall.rules({**HOST, **more, "direction": "both"})
    frame = tcp("10.0.0.7")
    for hook in ("ingress", "egress", "egress"):
        assert judged(firewall, frame, hook=hook) == [DROPPED]
    assert firewall.hits("r0") == (3, 3 * len(frame))


@BOTH_HOOKS
def test_a_rule_may_name_interfaces_or_globs(firewall: Loaded, hook: str) -> None:
    frame = tcp()
    for names, expected in (
        ([], DROPPED),
        ([HERE_NAME], DROPPED),
        ([ELSEWHERE_NAME], PASSES),
        ([ELSEWHERE_NAME, HERE_NAME], DROPPED),
        (["pretended-*"], DROPPED),
        (["*-0"], DROPPED),
        (["*-1"], PASSES),
        (["nothing-like-it*"], PASSES),
        (["pretended-interface-[0-9]"], DROPPED),
    ):
        firewall.rules({"interfaces": names, "direction": hook})
        assert judged(firewall, frame, hook=hook) == [expected], names


def test_a_rule_follows_its_interface_to_another_number(firewall: Loaded) -> None:
    """An interface that was made anew has another ifindex, and another may have got the old one."""
    firewall.rules({"interfaces": [HERE_NAME]})
    assert judged(firewall, tcp()) == [DROPPED]
    firewall.name_interfaces(**{HERE_NAME: ELSEWHERE, ELSEWHERE_NAME: HERE})
    assert judged(firewall, tcp()) == [PASSES]
    firewall.name_interfaces(**{HERE_NAME: HERE})
    assert judged(firewall, tcp()) == [DROPPED]
    assert firewall.hits("r0")[0] == 2


def test_rules_of_an_interface_and_of_all_are_one_order(firewall: Loaded) -> None:
    firewall.rules(
        {"id": "all", "priority": 10},
        {"id": "here", "interfaces": [HERE_NAME], "priority": 5, "action": "allow"},
        {"id": "elsewhere", "interfaces": [ELSEWHERE_NAME], "priority": 1},
    )
    assert judged(firewall, tcp()) == [ALLOWED]
    firewall.name_interfaces(**{ELSEWHERE_NAME: HERE})
    assert judged(firewall, tcp()) == [DROPPED]
    assert set(firewall.all_hits()) == {"here", "elsewhere"}
    firewall.name_interfaces(other=HERE)
    assert judged(firewall, tcp()) == [DROPPED]
    assert set(firewall.all_hits()) == {"here", "elsewhere", "all"}


@BOTH_HOOKS
def test_default_drop_drops_what_no_rule_matches_on_that_hook_alone(firewall: Loaded, hook: str) -> None:
    firewall.configure(**{f"default_{hook}": "drop"})
    firewall.rules(
        {**HOST, "action": "allow", "direction": "both"}, {**PORT, "action": "allow", "direction": "both"}
    )
    for each in ("ingress", "egress"):
        expected = DEFAULT_DROP if each == hook else PASSES
        assert judged(firewall, udp("10.0.0.8"), hook=each) == [expected]
        assert judged(firewall, udp("10.0.0.7"), tcp("10.0.0.8"), hook=each) == [ALLOWED, ALLOWED]


# --- changes -----------------------------------------------------------------------------------------------


@STRUCTURES
@BOTH_HOOKS
def test_deleting_a_rule_gives_every_packet_back(firewall: Loaded, more: dict[str, Any], hook: str) -> None:
    sources = ["10.0.0.0/8", "10.1.2.3", "2001:db8::/32", "2001:db8::1"]
    frames = [tcp(source) for source in ("10.0.0.1", "10.1.2.3", "2001:db8::1", "2001:db8:5::")]
    firewall.add(id="gone", sources=sources, direction=hook, **more)
    assert judged(firewall, *frames, hook=hook) == [DROPPED] * 4
    firewall.delete("gone")
    assert judged(firewall, *frames, hook=hook) == [PASSES] * 4


def test_an_edit_moves_a_rule_to_its_new_packets_and_structure_and_keeps_its_hits(firewall: Loaded) -> None:
    def check(*met: bytes) -> None:
        for frame in frames:
            assert judged(firewall, frame) == [DROPPED if frame in met else PASSES]

    one, other, port = tcp("10.0.0.1"), tcp("10.0.0.2"), tcp("10.0.0.3", dport=22)
    frames = (one, other, port)
    firewall.add(id="moving", sources=["10.0.0.1"])
    check(one)
    firewall.edit("moving", sources=["10.0.0.2"])
    check(other)
    firewall.edit("moving", sources=[], destination_ports=[22])
    check(port)
    firewall.edit("moving", sources=["10.0.0.1"], destination_ports=[])
    check(one)
    firewall.edit("moving", action="allow")
    assert judged(firewall, one) == [ALLOWED]
    assert firewall.hits("moving") == (5, 5 * len(one))


@STRUCTURES
def test_where_rules_share_a_prefix_the_next_takes_over_and_every_hit_is_kept(
    firewall: Loaded, more: dict[str, Any]
) -> None:
    frame = tcp("10.0.0.7")
    for number, action in enumerate(("allow", "drop", "allow")):
        firewall.add(id=f"r{number}", priority=number, action=action, **HOST, **more)
    assert judged(firewall, frame, frame) == [ALLOWED] * 2
    firewall.delete("r0")
    assert judged(firewall, frame, frame, frame) == [DROPPED] * 3
    firewall.add(id="r0", priority=0, action="allow", **HOST, **more)
    assert judged(firewall, frame) == [ALLOWED]
    firewall.edit("r0", priority=9)
    assert judged(firewall, frame) == [DROPPED]
    firewall.edit("r1", priority=10)
    assert judged(firewall, frame) == [ALLOWED]
    hits = {rule: packets for rule, (packets, _) in firewall.all_hits().items()}
    assert hits == {"r0": 1, "r1": 4, "r2": 1}


@STRUCTURES
def test_hits_survive_changes_of_other_rules(firewall: Loaded, more: dict[str, Any]) -> None:
    frame = tcp("10.0.0.7")
    firewall.add(id="counted", **HOST, **more)
    for number in range(5):
        assert judged(firewall, frame) == [DROPPED]
        firewall.add(id=f"other-{number}", sources=[f"10.9.{number}.0/24"], priority=number, **more)
        firewall.add(id=f"port-{number}", destination_ports=[number], priority=number)
    for number in range(5):
        firewall.delete(f"port-{number}")
        firewall.delete(f"other-{number}")
        assert judged(firewall, frame) == [DROPPED]
    assert firewall.hits("counted") == (10, 10 * len(frame))


def test_a_new_rule_starts_counting_at_0_in_a_slot_that_another_used(firewall: Loaded) -> None:
    for number in range(3):
        firewall.add(id="again", **PORT)
        assert judged(firewall, tcp()) == [DROPPED]
        assert firewall.hits("again") == (1, len(tcp())), number
        firewall.delete("again")


def test_a_batch_and_a_replace_are_judged_as_one_rule_set(firewall: Loaded) -> None:
    firewall.rules({"id": "keep", **HOST}, {"id": "go", **PORT, "priority": 5})
    assert judged(firewall, tcp("10.0.0.7"), tcp("10.0.0.8")) == [DROPPED] * 2
    firewall.rules({"id": "keep", **HOST}, {"id": "come", "sources": ["10.0.0.9"], "destination_ports": [1]})
    assert judged(firewall, tcp("10.0.0.7"), tcp("10.0.0.8"), tcp("10.0.0.9", dport=1)) == [
        DROPPED,
        PASSES,
        DROPPED,
    ]
    assert firewall.hits("keep") == (1, len(tcp()))


def test_hundreds_of_neighbours_in_the_policy_are_told_apart(firewall: Loaded) -> None:
    """More intervals in one block of addresses than any number of few bits holds."""
    even = [f"10.0.0.{last}" for last in range(0, 256, 2)]
    firewall.rules({"sources": even, "protocols": ["tcp"]})
    for last in range(256):
        wanted = PASSES if last % 2 else DROPPED
        assert firewall.judge(tcp(f"10.0.0.{last}")) == wanted, last
    assert firewall.judge(tcp("10.0.1.0")) == PASSES
