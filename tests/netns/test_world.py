"""The world tests itself, without the service: what passes, arrives, is told apart and is removed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.netns.topology import Topology, namespace_exists, processes, run
from tests.netns.world import World

MakeWorld = Callable[..., World]
PAYLOAD = b"a payload to find again"


@pytest.fixture
def bare(make_world: MakeWorld) -> World:
    return make_world(start=False)


def udp_frame(world: World, *, outward: bool = False) -> Ether:
    link = world.link
    macs = {"src": link.peer_mac, "dst": link.mac}
    addresses = {"src": link.peer_address(), "dst": link.address()}
    if outward:
        macs, addresses = ({"src": each["dst"], "dst": each["src"]} for each in (macs, addresses))
    return Ether(**macs) / IP(**addresses) / UDP(sport=1024, dport=4999) / Raw(PAYLOAD)


@pytest.mark.parametrize("outward", [False, True], ids=["inward", "outward"])
@pytest.mark.parametrize("family", [4, 6])
def test_ping_tcp_and_udp_pass_in_both_directions(bare: World, family: int, outward: bool) -> None:
    assert bare.ping(family, outward=outward) == 3
    assert bare.tcp_connect(8080, family, outward=outward)
    assert bare.udp_echo(5353, family, outward=outward)


def test_neighbours_are_found_where_they_are_not_given(make_world: MakeWorld) -> None:
    world = make_world(start=False, static_neighbours=False)
    assert world.ping(4, count=1) == 1
    assert world.ping(6, count=1) == 1


@pytest.mark.parametrize("outward", [False, True], ids=["inward", "outward"])
def test_a_raw_frame_arrives_and_one_that_was_never_sent_does_not(bare: World, outward: bool) -> None:
    frame = udp_frame(bare, outward=outward)
    assert bare.arrives(bytes(frame), PAYLOAD, outward=outward)
    assert not bare.arrives(bytes(frame), b"not in that frame", outward=outward)


def test_a_tagged_frame_arrives(bare: World) -> None:
    frame = udp_frame(bare)
    tagged = Ether(src=frame.src, dst=frame.dst) / Dot1Q(vlan=7) / frame.payload
    assert bare.arrives(bytes(tagged), PAYLOAD)


@pytest.mark.parametrize(("family", "address"), [(4, "203.0.113.7"), (6, "2001:db8::7")])
def test_the_peer_can_have_more_addresses(bare: World, family: int, address: str) -> None:
    bare.add_peer_address(address)
    assert bare.ping(family, source=address) == 3
    assert bare.tcp_connect(8080, family, source=address)


def test_blocked_traffic_is_told_from_a_closed_port(bare: World) -> None:
    run("ip", "netns", "exec", bare.topology.protected, "nft", "add table inet t")
    run(
        "ip",
        "netns",
        "exec",
        bare.topology.protected,
        "nft",
        "add chain inet t in { type filter hook input priority 0; }",
    )
    run("ip", "netns", "exec", bare.topology.protected, "nft", "add rule inet t in iif fw0 drop")
    assert bare.ping(count=2) == 0
    assert bare.exchange("tcp", 8080) == "timeout"
    assert not bare.udp_echo(5353)


def test_two_links_are_two_networks(make_world: MakeWorld) -> None:
    world = make_world(links=2, start=False)
    assert world.ping(link=0) == 3
    assert world.ping(link=1) == 3
    run("ip", "-n", world.topology.protected, "link", "set", "fw1", "down")
    assert world.ping(link=0) == 3
    assert world.ping(link=1, count=1) == 0


def test_a_world_that_was_not_removed_is_replaced_by_the_next_of_its_name() -> None:
    topology = Topology.for_test("leftover")
    topology.build()
    left = subprocess.Popen(["ip", "netns", "exec", topology.peer, "sleep", "600"])
    try:
        (topology.directory / "state").mkdir()
        with World(topology) as world:
            assert left.wait(5) == -9
            assert not (topology.directory / "state").exists()
            assert world.ping() == 3
    finally:
        topology.remove()
    assert topology.leaks() == []


def test_a_process_that_a_test_leaves_running_is_reported_and_ended() -> None:
    topology = Topology.for_test("stranger")
    world = World(topology)
    with pytest.raises(AssertionError, match=r"left running: process .*sleep 600"), world:  # noqa: PT012
        left = subprocess.Popen(["ip", "netns", "exec", topology.protected, "sleep", "600"])
        while Path(f"/proc/{left.pid}/comm").read_text() != "sleep\n":
            pass
    assert left.wait(5) == -9
    assert topology.leaks() == []


def test_nothing_is_left_of_a_world() -> None:
    topology = Topology.for_test("removed")
    with World(topology) as world:
        assert len(processes(topology.protected)) == 1
        assert world.topology.directory.is_dir()
    assert not any(namespace_exists(name) for name in topology.namespaces)
    assert not topology.directory.exists()
