"""never_drop, what a default drop spares, and panic, with the real daemon and real traffic on both hooks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.netns.topology import wait_until
from tests.netns.traffic import Traffic, add_rule, assert_blocked, assert_passes, ping, tcp, udp
from tests.netns.world import World

MakeWorld = Callable[..., World]
PEER, OTHER = "10.90.0.2", "10.90.0.3"
DROPS = {"default_ingress": "drop", "default_egress": "drop"}
# Sends each line of its input over one connection and prints what comes back, or that nothing did.
_SESSION = """
import socket, sys
with socket.create_connection((sys.argv[1], 22), 5) as session:
    session.settimeout(2)
    print("connected", flush=True)
    for line in sys.stdin:
        session.sendall(line.encode())
        try:
            print(session.recv(100).decode().strip() or "closed", flush=True)
        except TimeoutError:
            print("nothing", flush=True)
"""


class Session:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._number = 0

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def is_alive(self) -> bool:
        assert self._process.stdin is not None
        self._number += 1
        said = f"still here {self._number}"
        self._process.stdin.write(f"{said}\n")
        self._process.stdin.flush()
        return self.line() == said


@contextmanager
def ssh_session(world: World) -> Iterator[Session]:
    """From the peer to port 22 of the protected host, where an echo stands for the server."""
    assert tcp(world, 22).passes()
    command = [
        "ip",
        "netns",
        "exec",
        world.topology.peer,
        sys.executable,
        "-c",
        _SESSION,
        world.link.address(4),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        session = Session(process)
        assert session.line() == "connected"
        yield session
        assert process.stdin is not None
        process.stdin.close()


def all_traffic(world: World) -> list[Traffic]:
    return [
        each
        for family in (4, 6)
        for outward in (False, True)
        for each in (
            ping(world, family, outward=outward),
            tcp(world, 8080, family, outward=outward),
            udp(world, 5353, family, outward=outward),
        )
    ]


def panic(world: World, **body: Any) -> dict[str, Any]:
    answer = world.api.post("/v1/panic", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_never_drop_passes_whatever_the_rules_say_and_follows_a_reload(make_world: MakeWorld) -> None:
    world = make_world(filter={"never_drop": [PEER], **DROPS})
    world.add_peer_address(OTHER)
    add_rule(world, id="all", direction="both", priority=0, protocols=["icmp"])
    add_rule(world, id="peer", direction="both", priority=0, sources=[PEER])
    spared, other = [ping(world), ping(world, outward=True)], [ping(world, source=OTHER)]
    assert_passes(spared, "in never_drop")
    assert_blocked(other, "not in never_drop")
    assert world.api.get("/v1/status").json()["never_drop"] == [PEER]
    world.daemon.configure(
        {"interfaces": [{"name": world.link.interface}], "filter": {"never_drop": [OTHER], **DROPS}}
    )
    os.kill(world.daemon.pid, signal.SIGHUP)
    wait_until(lambda: world.api.get("/v1/status").json()["never_drop"] == [OTHER], "it is read again")
    assert_passes(other, "in never_drop now")
    assert_blocked(spared, "no more")


def test_a_default_drop_leaves_the_neighbours_known(make_world: MakeWorld) -> None:
    """ARP and neighbour discovery are real here, so the allowed packets arrive only where these pass."""
    world = make_world(filter=DROPS, static_neighbours=False)
    add_rule(
        world,
        id="ping",
        action="allow",
        direction="both",
        protocols=["icmp", "icmpv6"],
        icmp_types=[0, 8, 128, 129],
    )
    assert_passes(
        [ping(world, family, outward=outward) for family in (4, 6) for outward in (False, True)], "allowed"
    )
    assert_blocked([udp(world, 5353)], "not allowed")


def test_panic_blocks_all_but_sessions_on_both_hooks_and_comes_back(make_world: MakeWorld) -> None:
    world = make_world(filter={"never_drop": [OTHER]})
    world.add_peer_address(OTHER)
    add_rule(world, id="tcp", action="allow", direction="both", priority=0, protocols=["tcp"])
    everything, spared = all_traffic(world), [ping(world, source=OTHER)]
    assert_passes(everything, "before")
    with ssh_session(world) as session:
        answer = panic(world, on=True, ttl="10m")
        assert answer["on"] and answer["connections"] >= 1
        assert_blocked([*everything, tcp(world, 22)], "in panic")
        assert_passes(spared, "never_drop in panic")
        assert session.is_alive()
        assert world.api.get("/readyz").json() == {"status": "ready", "panic": True}
        assert "ebpf_fw_panic 1.0" in world.api.get("/metrics").text
        add_rule(world, id="late", sources=[PEER], protocols=["udp"])
        world.kill9()
        assert_blocked(everything, "in panic, killed")
        assert session.is_alive()
        world.daemon.start()
        assert_blocked(everything, "in panic, started again")
        assert session.is_alive() and world.api.get("/v1/panic").json()["on"]
        assert not panic(world, on=False)["on"]
        assert session.is_alive()
    assert_blocked([udp(world, 5353)], "the rule of meanwhile")
    world.api.delete("/v1/rules/late")
    assert_passes(everything, "after")


@pytest.mark.parametrize("killed", [False, True])
def test_panic_ends_when_its_time_has_come(make_world: MakeWorld, killed: bool) -> None:
    world = make_world()
    everything = [ping(world), ping(world, outward=True)]
    assert_passes(everything, "before")
    panic(world, on=True, ttl=4)
    assert_blocked(everything[:1], "in panic")
    if killed:
        world.kill9()
        world.daemon.start()
    wait_until(lambda: not world.api.get("/v1/panic").json()["on"], "panic ends")
    assert_passes(everything, "after its time")


def test_panic_ends_in_time_though_nobody_starts_the_service_again(make_world: MakeWorld) -> None:
    world = make_world()
    everything = [ping(world), ping(world, outward=True)]
    assert_passes(everything, "before")
    panic(world, on=True, ttl=6)
    assert_blocked(everything[:1], "in panic")
    world.kill9()
    assert_blocked(everything[:1], "in panic, killed")
    wait_until(lambda: world.ping(count=1) == 1, "panic ends", timeout_s=40)  # three may meet its end
    world.daemon.start()
    assert not world.api.get("/v1/panic").json()["on"]
    assert_passes(everything, "started again")


@pytest.mark.parametrize(
    "body", [{}, {"on": True, "ttl": "25h"}, {"on": True, "ttl": 0}, {"on": False, "ttl": 5}]
)
def test_what_is_wrong_about_a_panic_is_said(make_world: MakeWorld, body: dict[str, Any]) -> None:
    answer = make_world().api.post(
        "/v1/panic", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422 and answer.json()["errors"]
