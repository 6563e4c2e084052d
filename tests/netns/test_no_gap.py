"""A flood of listed packets meets the filter without a break, whatever happens to the service.

NO_GAP_ROUNDS: how many restarts and how many kills (`make no-gap`: 100 of each).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.test_confirmation import guardians
from tests.netns.test_restart import ROOT, RULES, hooks, state
from tests.netns.topology import wait_until
from tests.netns.traffic import add_rule, assert_blocked, ethernet, frame, ip, packets_of, ping, udp, udp_to
from tests.netns.world import World

MakeWorld = Callable[..., World]
ROUNDS = int(os.environ.get("NO_GAP_ROUNDS", "8"))
LONGEST_S = 2.0
PAUSE_S = 0.0005


@pytest.fixture
def listed(world: World) -> World:
    """A rule of each kind would drop the flood, in turn: an address and a policy rule."""
    crafted = flood_frame(world)
    assert frame(world, crafted).passes()
    for rule in RULES:
        add_rule(world, **rule)
    assert frame(world, crafted).is_blocked()
    return world


def flood_frame(world: World) -> Any:
    return ethernet(world) / ip(world) / udp_to(4999)


def under_systemd(world: World, job: str) -> None:
    """The service believes that it is a unit with this job: what systemd says is tested in tests/vm."""
    stand_in = world.topology.directory / "bin"
    stand_in.mkdir(exist_ok=True)
    (stand_in / "systemctl").write_text(
        f"#!/bin/sh\n[ $1 = list-jobs ] && echo 1 ebpf-fw.service {job} running\n"
    )
    (stand_in / "systemctl").chmod(0o755)
    world.daemon.environment = {
        "EBPF_FW_UNIT": "ebpf-fw.service",
        "PATH": f"{stand_in}:{os.environ['PATH']}",
    }


def none_passed(world: World, do: Callable[[], None]) -> int:
    """What is done while the flood goes on; how many packets were sent and dropped."""
    with world.flood(bytes(flood_frame(world)), pause_s=PAUSE_S) as flood:
        do()
    assert flood.sent > 100 and not flood.passed
    return flood.sent


def test_restarts_let_no_listed_packet_pass_and_count_every_one(listed: World) -> None:
    chance = random.Random(1)
    under_systemd(listed, "restart")
    listed.daemon.restart()  # from here on it has the environment
    before = packets_of(listed, "address")

    def restart_over_and_over() -> None:
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(0, 0.3))
            assert listed.stop() == 0
            listed.daemon.launch()
            if chance.random() < 0.5:
                listed.daemon.wait_until_ready()
            else:
                wait_until(listed.daemon.socket.exists, "it listens")
        listed.daemon.wait_until_ready()

    sent = none_passed(listed, restart_over_and_over)
    assert packets_of(listed, "address") == before + sent
    assert "filters=stay" in listed.daemon.log


def test_kills_at_random_moments_let_no_listed_packet_pass(listed: World) -> None:
    chance = random.Random(2)
    before = packets_of(listed, "address")

    def kill_over_and_over() -> None:
        for _ in range(ROUNDS):
            listed.kill9()
            listed.daemon.launch()
            time.sleep(chance.uniform(0, LONGEST_S))
        listed.kill9()
        listed.daemon.start()

    sent = none_passed(listed, kill_over_and_over)
    assert packets_of(listed, "address") == before + sent
    assert_blocked([ping(listed), udp(listed, 5353, 6)], "after the last start")


def test_other_sizes_and_other_programs_replace_those_that_run(listed: World) -> None:
    under_systemd(listed, "restart")
    listed.daemon.restart()
    before, programs = state(listed), hooks(listed)
    tree = other_tree(listed, "bpf/decide.h")
    ones_own = listed.daemon.command
    interfaces = [{"name": "fw0"}]

    def replace() -> None:
        listed.daemon.configure({"interfaces": interfaces, "bpf": {"max_rules": 64}})
        listed.daemon.restart()
        listed.daemon.command = ["env", f"--chdir={tree}", sys.executable, "-m", "cli"]
        listed.daemon.restart()
        listed.daemon.command = ones_own
        listed.daemon.configure({"interfaces": interfaces})
        listed.daemon.restart()

    sent = none_passed(listed, replace)
    assert not set(hooks(listed)) & set(programs)
    after = state(listed)
    # What is counted while one program after the other is replaced may be in maps that have been read.
    counted = after["address"]["stats"]["packets"] - before["address"]["stats"]["packets"]
    assert 0.9 * sent <= counted <= sent
    assert after["policy"]["stats"] == before["policy"]["stats"]
    assert_blocked([ping(listed), udp(listed, 5353, 6)], "after the changes")


def test_maps_that_are_laid_out_in_another_way_take_over_without_a_gap(listed: World) -> None:
    under_systemd(listed, "restart")
    listed.daemon.restart()
    tree = other_tree(listed, "bpf/layout.h")

    def upgrade() -> None:
        listed.daemon.command = ["env", f"--chdir={tree}", sys.executable, "-m", "cli"]
        listed.daemon.restart()

    none_passed(listed, upgrade)
    assert_blocked([ping(listed), udp(listed, 5353, 6)], "after the upgrade")


def other_tree(world: World, changed: str) -> Path:
    tree = world.topology.directory / "other"
    for part in ("api", "bpf", "cli", "feeds", "firewall"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    with (tree / changed).open("a") as source:
        source.write("/* The next version. */\n")
    return tree


def test_reloads_let_no_listed_packet_pass(listed: World) -> None:
    def reload_over_and_over() -> None:
        for number in range(10):
            action = "drop" if number % 2 else "allow"
            listed.daemon.configure(
                {"interfaces": [{"name": "fw0"}], "filter": {"default_ingress": action, "malformed": "pass"}}
            )
            assert listed.daemon.process is not None
            listed.daemon.process.send_signal(signal.SIGHUP)
            wait_until(lambda action=action: default_ingress(listed) == action, f"the default is {action}")

    none_passed(listed, reload_over_and_over)
    assert "drift" not in listed.daemon.log
    assert ping(listed, 6).is_blocked(), "the default is drop"


def default_ingress(world: World) -> str:
    return str(world.api.get("/v1/status").json()["default_actions"]["ingress"])


def test_a_tables_growth_lets_no_listed_packet_pass(make_world: MakeWorld) -> None:
    world = make_world(bpf={"max_addresses": 1 << 20})
    add_rule(world, id="listed", sources=["10.90.0.2"])
    lines = "\n".join(f"198.{18 + (n >> 16)}.{n >> 8 & 255}.{n & 255}" for n in range(1 << 17))

    def grow() -> None:
        answer = world.api.post(
            "/v1/rules/import", content=lines, headers={"Content-Type": "text/plain"}, timeout=120
        )
        assert answer.json()["added"] == 1 << 17

    none_passed(world, grow)


STOPS = [("keep", None, True), ("keep", "stop", True), ("detach", "stop", False), ("detach", "restart", True)]


@pytest.mark.parametrize(("on_stop", "job", "stays"), STOPS)
def test_what_a_stop_leaves(make_world: MakeWorld, on_stop: str, job: str | None, stays: bool) -> None:
    world = make_world(start=False, service={"on_stop": on_stop})
    if job:
        under_systemd(world, job)
    world.start()
    add_rule(world, id="listed", sources=["10.90.0.2"])
    assert ping(world).is_blocked()
    assert world.stop() == 0
    assert ping(world).is_blocked() if stays else ping(world).passes()
    assert world.daemon.pin_root.exists() is stays
    world.daemon.start()
    assert ping(world).is_blocked()
    assert packets_of(world, "listed") == (9 if stays else 6)


def test_a_stop_that_keeps_the_filters_keeps_no_change_that_nobody_confirmed(make_world: MakeWorld) -> None:
    """systemd ends the guardian with the service, so there would be nobody to take it back in time."""
    world = make_world(start=False, service={"on_stop": "keep"})
    under_systemd(world, "stop")
    world.start()
    assert ping(world).passes()
    answer = world.daemon.client.post(
        "/v1/rules?confirm_within=600", json={"id": "try", "sources": ["10.90.0.2"]}
    )
    assert answer.status_code == 201
    assert ping(world).is_blocked()
    assert world.stop() == 0
    assert ping(world).passes()
    assert world.daemon.pin_root.exists()
    wait_until(lambda: not guardians(world), "the guardian sees that nothing waits", 20)


def test_interfaces_that_the_config_no_longer_names_are_let_go_at_the_next_start(
    make_world: MakeWorld,
) -> None:
    world = make_world(links=2, service={"on_stop": "keep"})
    add_rule(world, id="all", sources=["10.90.0.0/16"])
    assert ping(world, link=1).is_blocked()
    assert world.stop() == 0
    world.daemon.configure({"interfaces": [{"name": "fw0"}]})
    world.daemon.start()
    assert ping(world, link=1).passes()
    assert ping(world, link=0).is_blocked()
