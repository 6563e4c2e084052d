"""Rules over REST become drops on a veth pair: each blocks what it names, counts it, and gives it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.netns.topology import run, wait_until
from tests.netns.traffic import (
    NEEDLE,
    add_rule,
    assert_blocked,
    assert_blocks,
    assert_passes,
    delete_rule,
    ethernet,
    frame,
    icmp,
    ip,
    packets_of,
    ping,
    tcp,
    tcp_to,
    udp,
    udp_to,
)
from tests.netns.world import World

MakeWorld = Callable[..., World]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
WAYS = pytest.mark.parametrize("outward", [False, True], ids=["ingress", "egress"])


@pytest.fixture
def world(shared_world: World) -> World:
    return shared_world


def other_peer(world: World, family: int) -> str:
    """One more address of the peer, next to the first: same network, last bits differ."""
    address = {4: "10.90.0.3", 6: "fd90::3"}[family]
    world.add_peer_address(address)
    return address


# Addresses


@FAMILIES
def test_an_address_is_blocked_and_the_next_one_is_not(world: World, family: int) -> None:
    other = other_peer(world, family)
    rule = {"sources": world.link.peer_address(family)}
    named = [ping(world, family), tcp(world, 8080, family), udp(world, 5353, family)]
    neighbours = [ping(world, family, source=other), ping(world, 10 - family)]
    assert_blocks(world, rule, named, neighbours)


@pytest.mark.parametrize(
    ("family", "network", "inside", "outside"),
    [
        (4, "203.0.113.0/25", "203.0.113.127", "203.0.113.128"),
        (6, "2001:db8:7::/48", "2001:db8:7:ffff::1", "2001:db8:8::1"),
    ],
)
def test_a_network_is_blocked_up_to_its_last_address(
    world: World, family: int, network: str, inside: str, outside: str
) -> None:
    world.add_peer_address(inside)
    world.add_peer_address(outside)
    named = [ping(world, family, source=inside), udp(world, 5353, family, source=inside)]
    assert_blocks(world, {"sources": [network]}, named, [ping(world, family, source=outside)])


def test_a_destination_is_blocked_and_the_other_addresses_of_the_host_are_not(world: World) -> None:
    run("ip", "-n", world.topology.protected, "address", "replace", "10.90.0.9/32", "dev", "fw0")
    to_other = ethernet(world) / ip(world, dst="10.90.0.9") / udp_to(4999)
    named = [frame(world, to_other)]
    assert_blocks(world, {"destinations": ["10.90.0.9"]}, named, [ping(world), udp(world, 5353)])


def test_an_allowed_address_inside_a_dropped_network_passes(world: World) -> None:
    other = other_peer(world, 4)
    exception = add_rule(world, action="allow", priority=10, sources=world.link.peer_address())
    assert_blocks(world, {"sources": "10.90.0.0/24"}, [ping(world, source=other)], [ping(world)])
    assert packets_of(world, exception) >= 3


def test_an_exception_of_worse_priority_is_none(world: World) -> None:
    add_rule(world, action="allow", priority=1001, sources=world.link.peer_address())
    assert_blocks(world, {"sources": "10.90.0.0/24"}, [ping(world)], [ping(world, 6)])


@pytest.mark.parametrize("fields", [{}, {"protocols": ["icmp"]}], ids=["addresses", "policy"])
def test_drop_wins_over_allow_of_the_same_priority(world: World, fields: dict[str, Any]) -> None:
    same = {"sources": world.link.peer_address(), **fields}
    allowed = add_rule(world, action="allow", **same)
    assert_blocks(world, {"action": "drop", **same}, [ping(world)], [ping(world, 6)])
    assert packets_of(world, allowed) == 2 * 3


def test_an_allow_of_a_policy_rule_beats_a_worse_drop_of_an_address_rule(world: World) -> None:
    add_rule(world, action="allow", priority=10, protocols=["tcp"], destination_ports=[22])
    rule = {"sources": world.link.peer_address()}
    assert_blocks(world, rule, [ping(world), tcp(world, 23)], [tcp(world, 22)])


# Protocols, ports, flags, ICMP


@FAMILIES
def test_a_range_of_ports_is_blocked_with_both_its_ends(world: World, family: int) -> None:
    rule = {"protocols": ["tcp"], "destination_ports": ["8000-8100"]}
    named = [tcp(world, port, family) for port in (8000, 8050, 8100)]
    neighbours = [tcp(world, 7999, family), tcp(world, 8101, family), udp(world, 8050, family)]
    assert_blocks(world, rule, named, neighbours)


def test_a_source_port_is_blocked_and_the_same_destination_port_is_not(world: World) -> None:
    rule = {"protocols": ["udp"], "source_ports": [4000]}
    named = [udp(world, 5353, source_port=4000)]
    assert_blocks(world, rule, named, [udp(world, 4000, source_port=4001)])


def test_udp_is_blocked_and_tcp_and_ping_are_not(world: World) -> None:
    assert_blocks(world, {"protocols": "udp"}, [udp(world, 5353)], [tcp(world, 5353), ping(world)])


def test_ports_without_a_protocol_mean_tcp_and_udp(world: World) -> None:
    rule = {"destination_ports": [5353]}
    assert_blocks(world, rule, [tcp(world, 5353), udp(world, 5353)], [tcp(world, 5354), udp(world, 5354)])


def test_one_rule_mixes_families_and_protocols(world: World) -> None:
    other = {family: other_peer(world, family) for family in (4, 6)}
    rule = {
        "sources": [world.link.peer_address(4), world.link.peer_address(6)],
        "protocols": ["tcp", "udp"],
        "destination_ports": ["53", "8000-8001"],
    }
    named = [
        traffic(world, port, family) for family in (4, 6) for port in (53, 8001) for traffic in (tcp, udp)
    ]
    neighbours = [tcp(world, 53, family, source=other[family]) for family in (4, 6)]
    neighbours += [udp(world, 54), ping(world, 6)]
    assert_blocks(world, rule, named, neighbours)


def test_a_syn_is_blocked_and_a_syn_with_ack_is_not(world: World) -> None:
    start = ethernet(world) / ip(world)
    rule = {"tcp_flags": {"set": ["syn"], "unset": ["ack"]}}
    named = [frame(world, start / tcp_to(4999, "S")), tcp(world, 8080)]
    assert_blocks(
        world, rule, named, [frame(world, start / tcp_to(4999, flags)) for flags in ("SA", "A", "F")]
    )


def test_connections_can_be_opened_outward_where_inward_ones_are_blocked(world: World) -> None:
    rule = {"protocols": "tcp", "tcp_flags": {"set": ["syn"], "unset": ["ack"]}}
    assert_blocks(world, rule, [tcp(world, 8080)], [tcp(world, 8080, outward=True), udp(world, 5353)])


@FAMILIES
def test_an_icmp_type_is_blocked_and_other_types_are_not(world: World, family: int) -> None:
    protocol, kind = {4: ("icmp", "8"), 6: ("icmpv6", "128")}[family]
    rule = {"protocols": [protocol], "icmp_types": [kind]}
    neighbours = [ping(world, family, outward=True), ping(world, 10 - family), udp(world, 5353, family)]
    assert_blocks(world, rule, [ping(world, family)], neighbours)


def test_an_icmp_code_is_blocked_and_the_other_codes_of_its_type_are_not(world: World) -> None:
    start = ethernet(world) / ip(world)
    named, other = (frame(world, start / icmp(3, code)) for code in (1, 2))
    assert_blocks(world, {"protocols": ["icmp"], "icmp_types": ["3/1"]}, [named], [other])


def test_a_protocol_without_ports_is_blocked_by_its_number(world: World) -> None:
    gre, esp = (frame(world, ethernet(world) / ip(world, proto=number) / Raw(NEEDLE)) for number in (47, 50))
    assert_blocks(world, {"protocols": [47]}, [gre], [esp, ping(world)])


def test_a_family_is_blocked_and_the_other_is_not(world: World) -> None:
    assert_blocks(world, {"family": "ipv6", "protocols": ["tcp"]}, [tcp(world, 80, 6)], [tcp(world, 80, 4)])


# Hooks and interfaces


@FAMILIES
def test_an_egress_rule_blocks_what_leaves_and_not_what_arrives(world: World, family: int) -> None:
    rule = {"direction": "egress", "destinations": world.link.peer_address(family), "protocols": ["udp"]}
    named = [udp(world, 5353, family, outward=True)]
    neighbours = [ping(world, family, outward=True), tcp(world, 8080, family, outward=True)]
    inward = ethernet(world) / ip(world, family) / udp_to(4999)
    assert_blocks(world, rule, named, [*neighbours, frame(world, inward)])


def test_an_egress_rule_on_an_address_blocks_that_address(world: World) -> None:
    other_peer(world, 4)
    rule = {"direction": "egress", "destinations": ["10.90.0.2"]}
    start = ethernet(world, outward=True)
    named = [frame(world, start / ip(world, outward=True) / udp_to(4999), outward=True)]
    neighbour = start / ip(world, outward=True, dst="10.90.0.3") / udp_to(4999)
    assert_blocks(world, rule, named, [frame(world, neighbour, outward=True)])
    assert_blocks(world, rule, [udp(world, 5353, outward=True)], [ping(world, 6, outward=True)])


def test_a_rule_for_both_directions_blocks_and_counts_both(world: World) -> None:
    rule = {"direction": "both", "protocols": ["udp"], "destination_ports": [5353]}
    named = [udp(world, 5353), udp(world, 5353, outward=True)]
    assert_blocks(world, rule, named, [udp(world, 5354), udp(world, 5354, outward=True)])


@pytest.mark.parametrize("fields", [{}, {"protocols": ["icmp"]}], ids=["any protocol", "icmp"])
def test_a_rule_of_one_interface_leaves_the_other_alone(world: World, fields: dict[str, Any]) -> None:
    rule = {"sources": ["10.90.0.0/16"], "interfaces": ["fw1"], **fields}
    assert_blocks(world, rule, [ping(world, link=1)], [ping(world, link=0), ping(world, 6, link=1)])
    assert_blocks(
        world, {**rule, "interfaces": ["fw*"]}, [ping(world), ping(world, link=1)], [ping(world, 6)]
    )


# Time and changes


def test_a_rule_is_in_force_until_its_time_has_passed(world: World) -> None:
    source, neighbour = (frame(world, ethernet(world) / ip(world) / udp_to(port)) for port in (4999, 5000))
    assert_passes([source, neighbour], "before the rule")
    rule_id = add_rule(world, protocols="udp", destination_ports=4999, ttl=2)
    assert_blocked([source], "before the rule expired")
    assert_passes([neighbour], "beside the rule")
    wait_until(source.passes, "the rule has expired", timeout_s=5)
    assert world.api.get(f"/v1/rules/{rule_id}").status_code == 404


@pytest.mark.parametrize("rule", [{"sources": "10.90.0.2"}, {"protocols": "icmp"}], ids=["address", "policy"])
def test_a_disabled_rule_blocks_nothing_and_keeps_its_count(world: World, rule: dict[str, Any]) -> None:
    source = ping(world)
    assert source.passes()
    rule_id = add_rule(world, **rule)
    assert_blocked([source], "while the rule is enabled")
    assert world.api.patch(f"/v1/rules/{rule_id}", json={"enabled": False}).status_code == 200
    assert_passes([source], "while the rule is disabled")
    assert packets_of(world, rule_id) == 3
    assert world.api.patch(f"/v1/rules/{rule_id}", json={"enabled": True}).status_code == 200
    assert_blocked([source], "while the rule is enabled again")
    assert packets_of(world, rule_id) == 6
    delete_rule(world, rule_id)
    assert source.passes()


def test_a_changed_rule_blocks_what_it_names_now(world: World) -> None:
    one, two = udp(world, 5001), udp(world, 5002)
    assert_passes([one, two], "before the rule")
    rule_id = add_rule(world, protocols="udp", destination_ports=5001)
    assert one.is_blocked() and two.passes()
    assert world.api.patch(f"/v1/rules/{rule_id}", json={"destination_ports": [5002]}).status_code == 200
    assert one.passes() and two.is_blocked()
    assert packets_of(world, rule_id) == 2
    delete_rule(world, rule_id)
    assert_passes([one, two], "after the rule")


def test_a_batch_and_a_replaced_rule_set_change_what_passes(world: World) -> None:
    one, two = udp(world, 5001), udp(world, 5002)
    first, second = (
        {"id": f"port-{port}", "protocols": "udp", "destination_ports": port} for port in (5001, 5002)
    )
    assert_passes([one, two], "before the rules")
    assert world.api.post("/v1/rules/batch", json={"add": [first, second]}).status_code == 200
    assert_blocked([one, two], "with both rules")
    assert world.api.put("/v1/ruleset", json={"rules": [second]}).status_code == 200
    assert one.passes() and two.is_blocked()
    assert packets_of(world, "port-5002") == 2
    assert world.api.put("/v1/ruleset", json={"rules": []}).status_code == 200
    assert_passes([one, two], "after the rules")


# Frames that are not plain


@WAYS
@pytest.mark.parametrize("tags", [[Dot1Q(vlan=7)], [Dot1AD(vlan=7), Dot1Q(vlan=8)]], ids=["VLAN", "QinQ"])
def test_a_tagged_frame_is_judged_by_the_packet_inside(
    world: World, tags: list[Packet], outward: bool
) -> None:
    start = ethernet(world, outward=outward)
    for tag in tags:
        start = start / tag
    inside = ip(world, outward=outward)
    rule = {"direction": "both", "protocols": ["udp"], "destination_ports": [4999]}
    named, neighbour = (frame(world, start / inside / udp_to(port), outward=outward) for port in (4999, 5000))
    assert_blocks(world, rule, [named], [neighbour])


@WAYS
def test_ports_are_found_behind_ipv4_options(world: World, outward: bool) -> None:
    start = ethernet(world, outward=outward) / ip(world, outward=outward, options=[b"\x01\x01\x01\x01"])
    named, neighbour = (frame(world, start / udp_to(port), outward=outward) for port in (4999, 5000))
    assert_blocks(world, {"direction": "both", "destination_ports": [4999]}, [named], [neighbour])


@WAYS
def test_ports_are_found_behind_ipv6_extension_headers(world: World, outward: bool) -> None:
    start = ethernet(world, outward=outward) / ip(world, 6, outward=outward) / IPv6ExtHdrDestOpt()
    named, neighbour = (frame(world, start / udp_to(port), outward=outward) for port in (4999, 5000))
    assert_blocks(world, {"direction": "both", "destination_ports": [4999]}, [named], [neighbour])


def fragments4(world: World, outward: bool) -> tuple[Packet, Packet]:
    whole = ip(world, outward=outward, id=7) / UDP(sport=1024, dport=4999) / Raw(NEEDLE * 20)
    first, later = fragment(whole, fragsize=240)[:2]
    return ethernet(world, outward=outward) / first, ethernet(world, outward=outward) / later


def fragments6(world: World, outward: bool) -> tuple[Packet, Packet]:
    start = ethernet(world, outward=outward) / ip(world, 6, outward=outward)
    first = (
        start
        / IPv6ExtHdrFragment(offset=0, m=1, id=7)
        / UDP(sport=1024, dport=4999, len=968)
        / Raw(NEEDLE * 8)
    )
    later = start / IPv6ExtHdrFragment(offset=24, m=0, id=7, nh=17) / Raw(b"\x04\x00\x13\x87" + NEEDLE * 8)
    return first, later


@WAYS
@pytest.mark.parametrize("fragments", [fragments4, fragments6], ids=["IPv4", "IPv6"])
def test_a_rule_on_ports_matches_the_first_fragment_and_no_later_one(
    world: World, fragments: Callable[[World, bool], tuple[Packet, Packet]], outward: bool
) -> None:
    first, later = (frame(world, each, outward=outward) for each in fragments(world, outward))
    rule = {"direction": "both", "protocols": ["udp"], "destination_ports": [4999]}
    assert_blocks(world, rule, [first], [later])


@WAYS
@pytest.mark.parametrize("fragments", [fragments4, fragments6], ids=["IPv4", "IPv6"])
def test_a_rule_on_protocol_or_address_matches_every_fragment(
    world: World, fragments: Callable[[World, bool], tuple[Packet, Packet]], outward: bool
) -> None:
    every = [frame(world, each, outward=outward) for each in fragments(world, outward)]
    other = [
        frame(
            world, ethernet(world, outward=outward) / ip(world, outward=outward) / tcp_to(1), outward=outward
        )
    ]
    assert_blocks(world, {"direction": "both", "protocols": ["udp"]}, every, other)
    networks = ["10.90.0.0/24", "fd90::/64"]
    assert_blocks(world, {"direction": "both", "sources": networks}, every, [])


def test_fragments_are_dropped_where_the_config_says_so(make_world: MakeWorld) -> None:
    world = make_world(filter={"fragments": "match"})
    fragments = [
        frame(world, each, outward=outward)
        for make in (fragments4, fragments6)
        for outward in (False, True)
        for each in make(world, outward)
    ]
    assert_passes(fragments, 'with fragments = "match"')
    configure(world, fragments="drop")
    assert_blocked(fragments, 'with fragments = "drop"')
    assert ping(world).passes()
    assert sum(drops_of(world, "fragment").values()) == len(fragments)
    configure(world, fragments="match")
    assert_passes(fragments, 'with fragments = "match" again')


def test_impossible_headers_are_dropped_with_a_reason_of_their_own(make_world: MakeWorld) -> None:
    world = make_world(filter={"malformed": "pass"})
    start = ethernet(world)
    crafted = {
        "malformed_ipv4": start / ip(world, ihl=4, len=43) / udp_to(4999),
        "malformed_l4": start / ip(world, proto=6) / TCP(sport=1, dport=2, dataofs=4) / Raw(NEEDLE),
    }
    frames = [frame(world, each) for each in crafted.values()]
    assert_passes(frames, 'with malformed = "pass"')
    configure(world, malformed="drop")
    assert_blocked(frames, 'with malformed = "drop"')
    assert {reason: drops_of(world, reason) for reason in crafted} == {
        reason: {"fw0": 1} for reason in crafted
    }
    configure(world, malformed="pass")
    assert_passes(frames, 'with malformed = "pass" again')


def configure(world: World, **settings: str) -> None:
    """Restart the service with another [filter]."""
    world.daemon.configure({"interfaces": [{"name": "fw0"}], "filter": settings})
    world.restart()


def drops_of(world: World, reason: str) -> dict[str, int]:
    """Dropped packets of a reason by interface, both hooks together."""
    found: dict[str, int] = {}
    for each in world.api.get("/v1/counters").json()["items"]:
        if (each["verdict"], each["reason"]) == ("drop", reason):
            found[each["interface"]] = found.get(each["interface"], 0) + each["packets"]
    return found


# What no rule matches


def test_with_default_drop_only_what_a_rule_allows_passes(make_world: MakeWorld) -> None:
    world = make_world(static_neighbours=False)
    asked, other = ping(world), udp(world, 5353)
    assert_passes([asked, other], 'with default_ingress = "allow"')
    configure(world, default_ingress="drop")
    assert_blocked([asked, other], 'with default_ingress = "drop"')
    assert drops_of(world, "default") == {"fw0": 4}
    rule_id = add_rule(world, action="allow", protocols=["icmp"])
    assert asked.passes()
    assert packets_of(world, rule_id) == 3
    assert_blocked([other], "beside the allowed ping")
    delete_rule(world, rule_id)
    assert_blocked([asked], "without the allowing rule")
    configure(world, default_ingress="allow")
    assert_passes([asked, other], 'with default_ingress = "allow" again')


def test_frames_that_are_not_ip_pass_whatever_the_rules_say(make_world: MakeWorld) -> None:
    world = make_world(filter={"default_ingress": "drop", "default_egress": "drop"})
    add_rule(world, direction="both", sources=["0.0.0.0/0", "::/0"])
    lldp = Ether(dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(NEEDLE + bytes(40))
    arp = ethernet(world) / ARP(psrc="10.90.0.2", pdst="10.90.0.1") / Raw(NEEDLE)
    for outward in (False, True):
        plain = frame(
            world, ethernet(world, outward=outward) / ip(world, outward=outward) / udp_to(1), outward=outward
        )
        assert_passes(
            [frame(world, each, outward=outward) for each in (lldp, arp)], "beside a rule that drops all"
        )
        assert_blocked([plain], "with a rule that drops all")


# A device without an Ethernet header


TUN_HOST, TUN_PEER, TUN_OTHER = "10.91.0.1", "10.91.0.2", "10.91.0.3"


@pytest.fixture
def tun_world(make_world: MakeWorld) -> World:
    """`tun0` in the protected namespace; what the agent writes to it arrives there."""
    world = make_world(start=False, interfaces=[{"name": "tun*"}])
    world.protected.call("open_tun", interface="tun0")
    namespace = world.topology.protected
    run("ip", "-n", namespace, "address", "add", f"{TUN_HOST}/24", "dev", "tun0")
    run("ip", "-n", namespace, "link", "set", "tun0", "addrgenmode", "none", "up")
    return world.start()


def arrives_at_tun(world: World, source: str, port: int) -> bool:
    """Write a packet to the tun device, and one of another protocol behind it that nothing here drops."""
    packet = IP(src=source, dst=TUN_HOST) / udp_to(port)
    marker = IP(src=source, dst=TUN_HOST, proto=253) / Raw(b"marker" + NEEDLE)
    world.protected.call("capture", interface="tun0")
    world.protected.call(
        "write_tun", interface="tun0", packets=[bytes(each).hex() for each in (packet, marker)]
    )
    first = world.protected.call("captured", interface="tun0", needle=NEEDLE.hex(), timeout_s=5)
    assert first is not None, "neither the packet nor the marker behind it arrived"
    return b"marker" not in bytes.fromhex(first)


def leaves_by_tun(world: World, target: str, port: int) -> bool:
    packets = [
        IP(src=TUN_HOST, dst=target) / udp_to(port),
        IP(src=TUN_HOST, dst=target, proto=253) / Raw(b"marker" + NEEDLE),
    ]
    world.protected.call("send", interface="tun0", frames=[bytes(each).hex() for each in packets])
    found: list[bytes] = []
    while not found or b"marker" not in found[-1]:
        packet = world.protected.call("read_tun", interface="tun0", needle=NEEDLE.hex(), timeout_s=5)
        assert packet is not None, "neither the packet nor the marker behind it left"
        found.append(bytes.fromhex(packet))
    return len(found) == 2


def test_packets_without_an_ethernet_header_are_judged_at_ingress(tun_world: World) -> None:
    world = tun_world
    hook = world.api.get("/v1/interfaces/tun0").json()["hooks"][0]
    assert (hook["attached"], hook["mode"], hook["program_name"]) == (True, "generic", "fw_xdp_ip")
    assert arrives_at_tun(world, TUN_PEER, 4999) and arrives_at_tun(world, TUN_OTHER, 4999)
    for rule in (
        {"sources": [TUN_PEER], "protocols": "udp"},
        {"destination_ports": "4999", "sources": TUN_PEER},
    ):
        rule_id = add_rule(world, **rule)
        assert not arrives_at_tun(world, TUN_PEER, 4999)
        assert arrives_at_tun(world, TUN_OTHER, 4999)
        assert packets_of(world, rule_id) == 1
        delete_rule(world, rule_id)
        assert arrives_at_tun(world, TUN_PEER, 4999)


def test_packets_without_an_ethernet_header_are_judged_at_egress(tun_world: World) -> None:
    world = tun_world
    assert leaves_by_tun(world, TUN_PEER, 4999) and leaves_by_tun(world, TUN_PEER, 5000)
    rule_id = add_rule(world, direction="egress", destinations=TUN_PEER, destination_ports=4999)
    assert not leaves_by_tun(world, TUN_PEER, 4999)
    assert leaves_by_tun(world, TUN_PEER, 5000) and leaves_by_tun(world, TUN_OTHER, 4999)
    assert packets_of(world, rule_id) == 1
    delete_rule(world, rule_id)
    assert leaves_by_tun(world, TUN_PEER, 4999)
