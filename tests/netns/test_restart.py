"""The service ends in every way that it can, and comes back: nothing is lost and no listed packet passes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.daemon import Daemon
from tests.netns.topology import run, wait_until
from tests.netns.traffic import (
    add_rule,
    assert_blocked,
    assert_passes,
    delete_rule,
    ethernet,
    frame,
    ip,
    packets_of,
    ping,
    udp,
    udp_to,
)
from tests.netns.world import World

MakeWorld = Callable[..., World]
ROOT = Path(__file__).parents[2]
RULES: list[dict[str, Any]] = [
    {"id": "address", "sources": ["10.90.0.2"], "description": "ünïcode", "labels": {"team": "a"}},
    {"id": "policy", "protocols": ["udp"], "destination_ports": ["5353"], "family": "ipv6"},
    {"id": "outward", "direction": "egress", "destinations": ["fd90::2"], "protocols": ["tcp"]},
    {"id": "disabled", "enabled": False, "sources": ["0.0.0.0/0"]},
    {"id": "later", "sources": ["203.0.113.7"], "ttl": 3600},
]


def state(world: World) -> dict[str, Any]:
    """Everything of the rules that must be the same after a restart: fields, times and counts."""
    return {rule["id"]: rule for rule in world.api.get("/v1/rules").json()["items"]}


def counters(world: World) -> dict[tuple[str, ...], tuple[int, int]]:
    return {
        tuple(each[field] for field in ("hook", "interface", "verdict", "reason")): (
            each["packets"],
            each["bytes"],
        )
        for each in world.api.get("/v1/counters").json()["items"]
        if each["packets"]
    }


def blocked_traffic(world: World) -> list[Any]:
    return [ping(world), udp(world, 5353, 6)]


def fill(world: World) -> None:
    """Rules that were hit: each of them has something to lose."""
    assert_passes(blocked_traffic(world), "before the rules")
    for rule in RULES:
        add_rule(world, **rule)
    assert_blocked(blocked_traffic(world), "with the rules")


def hooks(world: World, name: str = "fw0") -> tuple[int | None, int | None]:
    """Ids of the programs on both hooks."""
    ingress, egress = world.api.get(f"/v1/interfaces/{name}").json()["hooks"]
    return ingress["program_id"], egress["program_id"]


def test_a_killed_service_goes_on_dropping_and_comes_back_with_everything(world: World) -> None:
    fill(world)
    before, programs = state(world), hooks(world)
    world.kill9()
    assert_blocked(blocked_traffic(world), "after kill -9")
    assert ping(world, 6).passes()
    world.daemon.start()
    after = state(world)
    for rule_id, packets in (("address", 3), ("policy", 1)):
        assert after[rule_id]["stats"]["packets"] == before[rule_id]["stats"]["packets"] + packets
    assert {**after, "address": None, "policy": None} == {**before, "address": None, "policy": None}
    assert hooks(world) == programs, "the programs that ran need not have been replaced"
    assert_blocked(blocked_traffic(world), "after the start")
    for rule_id in before:
        delete_rule(world, rule_id)
    assert_passes(blocked_traffic(world), "after the rules")


def test_a_change_that_was_acknowledged_is_there_after_the_kill(world: World) -> None:
    for number in range(20):
        add_rule(world, id=f"rule-{number}", sources=f"203.0.113.{number}")
        delete_rule(world, "rule-3") if number == 3 else None
    add_rule(world, id="last", protocols=["udp"], destination_ports=[5001])
    world.kill9()
    assert udp(world, 5001).is_blocked()
    world.daemon.start()
    assert set(state(world)) == {f"rule-{number}" for number in range(20) if number != 3} | {"last"}
    delete_rule(world, "last")
    world.kill9()
    assert udp(world, 5001).passes()
    world.daemon.start()
    assert "last" not in state(world)
    assert udp(world, 5001).passes()


def test_a_service_that_is_killed_while_it_starts_lets_nothing_through(world: World) -> None:
    crafted = ethernet(world) / ip(world) / udp_to(4999)
    assert frame(world, crafted).passes()
    add_rule(world, id="listed", sources=["10.90.0.2"])
    assert frame(world, crafted).is_blocked()
    with world.flood(bytes(crafted)) as flood:
        world.kill9()
        for _ in range(3):
            world.daemon.launch()
            wait_until(world.daemon.socket.exists, "the service listens")
            world.kill9()
        world.daemon.start()
    assert flood.sent > 100 and not flood.passed
    assert packets_of(world, "listed") == flood.sent + 1


def test_sigterm_takes_the_filters_away_and_a_start_brings_everything_back(world: World) -> None:
    fill(world)
    before, counted = state(world), counters(world)
    assert world.stop() == 0
    assert_passes(blocked_traffic(world), "while the service is stopped")
    assert "xdp" not in run("ip", "-n", world.topology.protected, "link", "show", "dev", "fw0")
    assert "clsact" not in run("tc", "-n", world.topology.protected, "qdisc", "show", "dev", "fw0")
    assert not world.daemon.pin_root.exists()
    world.daemon.start()
    assert state(world) == before
    found = counters(world)
    for key, (packets, size) in counted.items():
        # The kernel may report its multicast groups (MLD) at any time; nothing but the test is dropped.
        assert found[key] == (packets, size) or (key[2] == "pass" and found[key] > (packets, size))
    assert_blocked(blocked_traffic(world), "after the start")
    assert packets_of(world, "address") == 2 * 3


def test_interfaces_that_the_api_attached_or_detached_are_so_after_a_restart(make_world: MakeWorld) -> None:
    world = make_world(links=2, interfaces=[{"name": "fw0"}])
    add_rule(world, id="all", sources=["10.90.0.0/16"])
    assert world.api.put("/v1/interfaces/fw1", json={"mode": "generic", "egress": False}).status_code == 200
    assert world.api.delete("/v1/interfaces/fw0").status_code == 204
    for end in (world.stop, world.kill9):
        assert ping(world, link=0).passes()
        assert ping(world, link=1).is_blocked()
        end()
        world.daemon.start()
        [attached] = world.api.get("/v1/interfaces").json()["items"]
        assert (attached["name"], attached["mode"], attached["actual_mode"]) == ("fw1", "generic", "generic")
        assert (attached["ingress"], attached["egress"]) == (True, False)
    assert ping(world, link=0).passes()
    assert world.api.put("/v1/interfaces/fw0").status_code == 200
    assert ping(world, link=0).is_blocked()


def test_an_expired_rule_is_gone_after_a_kill(world: World) -> None:
    add_rule(world, id="short", sources=["10.90.0.2"], ttl=1)
    world.kill9()
    world.daemon.start()
    wait_until(lambda: "short" not in state(world), "the rule has expired")
    assert ping(world).passes()


# Upgrade


def copy_with_other_programs(world: World) -> Path:
    """This checkout's code with a comment more in the BPF sources: other programs of the same layout."""
    tree = world.topology.directory / "upgrade"
    for part in ("api", "bpf", "cli", "feeds", "firewall"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    with (tree / "bpf/decide.h").open("a") as source:
        source.write("/* The next version. */\n")
    return tree


def test_an_upgrade_replaces_the_programs_and_no_listed_packet_passes(world: World) -> None:
    crafted = ethernet(world) / ip(world) / udp_to(4999)
    assert frame(world, crafted).passes()
    fill(world)
    before, programs = state(world), hooks(world)
    tree = copy_with_other_programs(world)
    world.daemon.command = ["env", f"--chdir={tree}", sys.executable, "-m", "cli"]
    with world.flood(bytes(crafted)) as flood:
        world.kill9()
        world.daemon.start()
    assert flood.sent > 100 and not flood.passed
    after = state(world)
    assert after["address"]["stats"]["packets"] == before["address"]["stats"]["packets"] + flood.sent
    assert {**after, "address": None} == {**before, "address": None}
    assert not set(hooks(world)) & set(programs), "the programs were not replaced"
    assert world.api.get("/v1/status").json()["drift"] == []
    assert not (world.daemon.pin_root / "next").exists()
    assert_blocked(blocked_traffic(world), "after the upgrade")


# Two of them


@pytest.mark.parametrize("other_socket", [False, True], ids=["same socket", "same state, another socket"])
def test_a_second_service_fails_with_a_message_and_touches_nothing(world: World, other_socket: bool) -> None:
    fill(world)
    before, programs = state(world), hooks(world)
    configuration = world.daemon.configuration_path
    if other_socket:
        text = configuration.read_text().replace("api.sock", "other.sock")
        configuration = configuration.with_name("other.toml")
        configuration.write_text(text)
    second = start_second(world.daemon, configuration)
    assert second.returncode == 1, second.stderr
    assert "another" in second.stderr
    assert state(world) == before
    assert hooks(world) == programs
    assert world.api.get("/readyz").status_code == 200
    assert_blocked(blocked_traffic(world), "after the second service")


def start_second(daemon: Daemon, configuration: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", daemon.namespace, *daemon.command, "serve", "--config", str(configuration)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
