"""Sets on the wire: the real daemon, its command line, real traffic."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.netns.test_packet_tests import ask, ebpf_fw
from tests.netns.traffic import add_rule, assert_blocked, assert_passes, packets_of, ping, tcp
from tests.netns.world import World
from tests.unit.host import wait_for

LONG_S = 60


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """With a set that no rule names yet."""
    ebpf_fw(shared_world, "set", "create", "blocked")
    yield shared_world
    assert shared_world.api.put("/v1/ruleset", json={"rules": []}).status_code == 200
    ebpf_fw(shared_world, "set", "delete", "blocked")


def entries(world: World) -> list[str]:
    return [each["address"] for each in world.api.get("/v1/sets/blocked/entries").json()["items"]]


@pytest.mark.parametrize("family", [4, 6])
def test_what_comes_into_a_set_is_dropped_and_what_goes_passes(world: World, family: int) -> None:
    peer = world.link.peer_address(family)
    rule = add_rule(world, sources=["@blocked"])
    assert_passes([ping(world, family)], "while the set is empty")
    assert ebpf_fw(world, "set", "add", "blocked", peer, "--comment", "the peer") == "added 1\n"
    assert_blocked([ping(world, family)], "with the peer in the set")
    assert packets_of(world, rule) == 3
    (entry,) = world.api.get("/v1/sets/blocked/entries").json()["items"]
    assert (entry["stats"]["packets"], entry["comment"]) == (3, "the peer")
    ebpf_fw(world, "set", "delete", "blocked", expect=4)  # a rule names it
    ebpf_fw(world, "set", "remove", "blocked", peer)
    assert_passes([ping(world, family)], "after it went")
    assert packets_of(world, rule) == 3


def test_a_set_stands_beside_ports_in_a_rule(world: World) -> None:
    world.api.put(
        "/v1/sets/blocked/entries", json={"entries": ["192.0.2.1", f"{world.link.peer_address(4)}/32"]}
    )
    assert_passes([tcp(world, 8080), tcp(world, 8081)], "before the rule")
    add_rule(
        world, id="web", sources=["@blocked", "198.51.100.0/24"], protocols=["tcp"], destination_ports=[8080]
    )
    assert_blocked([tcp(world, 8080)], "with the rule")
    assert_passes([tcp(world, 8081), ping(world)], "beside the rule")
    asked = ask(world, source=world.link.peer_address(4), destination_port=8080)
    assert asked["rule"]["id"] == "web" and asked["consistent"]
    world.api.put("/v1/sets/blocked/entries", json={"entries": ["192.0.2.1"]})
    assert_passes([tcp(world, 8080)], "after the set was replaced")


def test_an_entry_goes_within_a_second_of_its_time(world: World) -> None:
    add_rule(world, sources=["@blocked"])
    peer = world.link.peer_address(4)
    added_at = time.time()
    ebpf_fw(world, "set", "add", "blocked", peer, "--ttl", "3")
    assert_blocked([ping(world)], "before its time")
    wait_for(lambda: world.ping(count=1) == 1, LONG_S)
    lived_s = time.time() - added_at
    assert entries(world) == []
    assert lived_s >= 3


def test_a_killed_service_starts_with_the_entries_whose_time_has_not_come(world: World) -> None:
    add_rule(world, sources=["@blocked"])
    body = {"entries": [world.link.peer_address(4), {"address": world.link.peer_address(6), "ttl": 2}]}
    assert world.api.post("/v1/sets/blocked/entries", json=body).json()["added"] == 2
    expires_at = time.monotonic() + 2
    world.kill9()
    assert_blocked([ping(world), ping(world, 6)], "while nobody takes entries out")
    wait_for(lambda: time.monotonic() > expires_at, LONG_S)
    world.daemon.start()
    assert_blocked([ping(world)], "after the start")
    assert_passes([ping(world, 6)], "after the start, though it was listed before")
    assert entries(world) == [world.link.peer_address(4)]
