"""Attaching and detaching: every mode, interfaces that come and go, and programs of others that stay."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.topology import run, wait_until
from tests.netns.traffic import add_rule, ping
from tests.netns.world import World

MakeWorld = Callable[..., World]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """The service with a rule that drops the peer, and no interface yet."""
    made = make_world(links=1, interfaces=[])
    add_rule(made, id="peer", direction="both", sources=["10.90.0.2"])
    add_rule(made, id="outward", direction="egress", destinations=["fd90::2"])
    return made


def attach(world: World, name: str = "fw0", **request: Any) -> dict[str, Any]:
    answer = world.api.put(f"/v1/interfaces/{name}", json=request)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def links(world: World) -> str:
    """What the kernel says of the interface: programs, qdiscs and filters."""
    namespace = world.topology.protected
    shown = [run("ip", "-n", namespace, "-d", "link", "show", "dev", "fw0")]
    shown.append(run("tc", "-n", namespace, "qdisc", "show", "dev", "fw0"))
    if "clsact" in shown[-1]:
        shown += [
            run("tc", "-n", namespace, "filter", "show", "dev", "fw0", hook) for hook in ("ingress", "egress")
        ]
    return "\n".join(shown)


def is_blocked(world: World) -> bool:
    return ping(world).is_blocked()


# Modes


@pytest.mark.parametrize(
    ("mode", "actual"), [("native", "native"), ("generic", "generic"), ("auto", "native")]
)
def test_each_mode_filters_and_detaching_leaves_nothing(world: World, mode: str, actual: str) -> None:
    before = links(world)
    assert ping(world).passes() and ping(world, 6).passes()
    shown = attach(world, mode=mode)
    assert (shown["mode"], shown["actual_mode"], shown["native_unavailable"]) == (mode, actual, None)
    assert [hook["attached"] for hook in shown["hooks"]] == [True, True]
    assert is_blocked(world) and ping(world, 6).is_blocked()
    assert world.api.delete("/v1/interfaces/fw0").status_code == 204
    assert ping(world).passes() and ping(world, 6).passes()
    assert links(world) == before
    assert world.api.get("/v1/interfaces").json()["items"] == []
    assert world.api.get("/v1/interfaces/fw0").status_code == 404


def test_offload_is_refused_and_what_was_attached_stays(world: World) -> None:
    before = links(world)
    refused(world, {"mode": "offload"})
    assert links(world) == before
    assert world.api.get("/v1/interfaces").json()["items"] == []
    attach(world, mode="generic")
    attached = links(world)
    refused(world, {"mode": "offload"})
    assert links(world) == attached
    assert is_blocked(world)
    assert world.api.get("/v1/interfaces/fw0").json()["mode"] == "generic"


def refused(world: World, request: dict[str, Any]) -> None:
    answer = world.api.put("/v1/interfaces/fw0", json=request)
    problem = answer.json()
    assert answer.status_code == 503, answer.text
    assert problem["code"] == "offload_unavailable"
    assert problem["hint"]
    assert "fw0" in problem["detail"]


def test_the_mode_of_an_attached_interface_can_be_changed(world: World) -> None:
    for mode in ("native", "generic", "native"):
        assert attach(world, mode=mode)["actual_mode"] == mode
        assert is_blocked(world)


def test_one_hook_alone_can_be_attached(world: World) -> None:
    shown = attach(world, ingress=False)
    assert [hook["attached"] for hook in shown["hooks"]] == [False, True]
    assert ping(world).passes() and ping(world, 6).is_blocked()
    shown = attach(world, egress=False)
    assert [hook["attached"] for hook in shown["hooks"]] == [True, False]
    assert ping(world).is_blocked() and ping(world, 6).passes()


def test_auto_falls_back_to_generic_and_says_why(world: World) -> None:
    """A bridge has no native XDP."""
    namespace = world.topology.protected
    run("ip", "-n", namespace, "link", "add", "br0", "type", "bridge")
    run("ip", "-n", namespace, "link", "set", "br0", "up")
    shown = attach(world, "br0")
    assert (shown["mode"], shown["actual_mode"]) == ("auto", "generic")
    assert "EOPNOTSUPP" in shown["native_unavailable"]
    assert world.api.get("/v1/interfaces/br0").json()["native_unavailable"] == shown["native_unavailable"]
    assert world.api.delete("/v1/interfaces/br0").status_code == 204
    answer = world.api.put("/v1/interfaces/br0", json={"mode": "native"})
    assert answer.status_code == 503
    assert "EOPNOTSUPP" in answer.json()["detail"]
    assert "generic" in answer.json()["hint"]
    assert world.api.get("/v1/interfaces").json()["items"] == []


# Programs of others


def put_foreign_programs(world: World) -> str:
    """An XDP program and two clsact filters of another owner. Returns what the kernel shows of them."""
    pin = world.topology.bpffs / "foreign" / "egress"
    command = [
        "ip",
        "netns",
        "exec",
        world.topology.protected,
        sys.executable,
        "-m",
        "tests.netns.foreign_programs",
    ]
    subprocess.run([*command, "fw0", str(pin), "true"], cwd=ROOT, check=True, capture_output=True)
    return links(world)


def test_an_xdp_program_of_another_owner_is_named_and_stays(world: World) -> None:
    before = put_foreign_programs(world)
    answer = world.api.put("/v1/interfaces/fw0")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (409, "program_conflict")
    shown = json.loads(run("ip", "-n", world.topology.protected, "-j", "link", "show", "dev", "fw0"))
    assert f"id {shown[0]['xdp']['prog']['id']}" in problem["detail"]
    assert "other_xdp" in problem["detail"]
    assert problem["hint"]
    assert links(world) == before
    assert world.api.get("/v1/interfaces").json()["items"] == []


def test_force_puts_ours_in_the_place_of_another_owners(world: World) -> None:
    put_foreign_programs(world)
    shown = attach(world, force=True)
    assert (shown["actual_mode"], shown["hooks"][0]["program_name"]) == ("native", "fw_xdp_ethernet")
    assert is_blocked(world)
    assert "pref 5" in links(world) and "pref 9" in links(world)
    assert "other_xdp" not in links(world)


def test_an_xdp_program_that_was_pinned_is_told_with_its_pin(world: World) -> None:
    pin = Path("/sys/fs/bpf") / f"{world.topology.name}-foreign"
    put_foreign_programs(world)
    [link] = json.loads(run("ip", "-n", world.topology.protected, "-j", "link", "show", "dev", "fw0"))
    run("bpftool", "prog", "pin", "id", str(link["xdp"]["prog"]["id"]), str(pin))
    try:
        problem = world.api.put("/v1/interfaces/fw0").json()
    finally:
        pin.unlink()
    assert problem["code"] == "program_conflict" and "--force" in problem["hint"]


def test_egress_filters_of_another_owner_stay_beside_ours(world: World) -> None:
    before = put_foreign_programs(world)
    attach(world, ingress=False)
    during = run("tc", "-n", world.topology.protected, "filter", "show", "dev", "fw0", "egress")
    assert "pref 5" in during and "pref 9" in during
    assert ping(world, 6).is_blocked()
    assert world.api.delete("/v1/interfaces/fw0").status_code == 204
    assert links(world) == before


def test_a_filter_of_another_owner_in_our_place_is_not_replaced(world: World) -> None:
    put_foreign_programs(world)
    namespace, pin = world.topology.protected, world.topology.bpffs / "foreign" / "egress"
    where = f"dev fw0 egress protocol all prio 1 handle 1 bpf direct-action pinned {pin}"
    run("ip", "netns", "exec", namespace, "tc", "filter", "add", *where.split())
    before = links(world)
    answer = world.api.put("/v1/interfaces/fw0", json={"ingress": False})
    assert (answer.status_code, answer.json()["code"]) == (409, "program_conflict"), answer.text
    assert "own_tc" in answer.json()["detail"]
    assert links(world) == before


def test_a_configured_interface_that_another_owner_holds_makes_the_service_not_ready(
    make_world: MakeWorld,
) -> None:
    world = make_world(start=False)
    before = put_foreign_programs(world)
    world.daemon.launch()
    wait_until(lambda: answers(world), "the service has started", timeout_s=90)
    ready = world.api.get("/readyz")
    assert ready.status_code == 503
    assert "other_xdp" in ready.text
    status = world.api.get("/v1/status").json()
    assert not status["ready"] and "other_xdp" in status["not_ready"][0]
    assert world.stop() == 0
    assert links(world) == before


def answers(world: World) -> bool:
    return world.daemon.socket.exists() and world.api.get("/v1/status").status_code == 200


# Interfaces that come and go


def add_link(world: World, name: str) -> None:
    peer = f"{name}p netns {world.topology.peer}"
    run(
        "ip",
        "-n",
        world.topology.protected,
        "link",
        "add",
        name,
        "type",
        "veth",
        "peer",
        "name",
        *peer.split(),
    )


def attached_hooks(world: World, name: str) -> list[bool]:
    answer = world.api.get(f"/v1/interfaces/{name}")
    return [hook["attached"] for hook in answer.json()["hooks"]] if answer.status_code == 200 else []


def test_an_interface_that_comes_later_is_attached_where_a_glob_fits(make_world: MakeWorld) -> None:
    world = make_world(interfaces=[{"name": "fw*", "mode": "generic"}])
    add_link(world, "other0")
    add_link(world, "fw9")
    wait_until(lambda: attached_hooks(world, "fw9") == [True, True], "fw9 is attached")
    assert world.api.get("/v1/interfaces/fw9").json()["actual_mode"] == "generic"
    assert attached_hooks(world, "other0") == []
    run("ip", "-n", world.topology.protected, "link", "delete", "fw9")
    wait_until(lambda: attached_hooks(world, "fw9") == [], "fw9 is forgotten")
    assert world.api.get("/readyz").status_code == 200


def test_an_interface_that_is_deleted_and_made_again_is_protected_again(world: World) -> None:
    attach(world)
    assert is_blocked(world)
    run("ip", "-n", world.topology.protected, "link", "delete", "fw0")
    wait_until(lambda: attached_hooks(world, "fw0") == [False, False], "fw0 is gone")
    shown = world.api.get("/v1/interfaces/fw0").json()
    assert (shown["present"], shown["ifindex"]) == (False, None)
    world.topology._add_link(world.link)
    wait_until(lambda: attached_hooks(world, "fw0") == [True, True], "fw0 is attached again")
    assert is_blocked(world)
    assert ping(world, 6, outward=True).is_blocked()
    assert world.api.delete("/v1/interfaces/fw0").status_code == 204
    assert ping(world).passes()


def test_a_rule_of_one_interface_holds_for_the_interface_that_comes_again(world: World) -> None:
    assert world.api.put("/v1/ruleset", json={"rules": []}).status_code == 200
    attach(world)
    add_rule(world, sources=["10.90.0.2"], interfaces=["fw0"])
    assert is_blocked(world)
    run("ip", "-n", world.topology.protected, "link", "delete", "fw0")
    wait_until(lambda: attached_hooks(world, "fw0") == [False, False], "fw0 is gone")
    world.topology._add_link(world.link)
    wait_until(lambda: attached_hooks(world, "fw0") == [True, True], "fw0 is attached again")
    assert is_blocked(world)


# What bpftool shows


def test_bpftool_shows_names_that_a_person_can_read(world: World) -> None:
    hooks = attach(world)["hooks"]
    names = []
    for hook in hooks:
        shown = json.loads(run("bpftool", "-j", "prog", "show", "id", str(hook["program_id"])))
        assert shown["name"] == hook["program_name"]
        names.append(shown["name"])
    assert names == ["fw_xdp_ethernet", "fw_tc_ethernet"]
    pins = world.daemon.pin_root
    assert {path.name for path in (pins / "programs").iterdir()} >= set(names)
    maps = sorted(path.name for path in (pins / "maps").iterdir())
    assert {"address4", "address6", "policy_vectors", "counters", "control_map"} <= set(maps)
    for name in maps:
        assert (
            json.loads(run("bpftool", "-j", "map", "show", "pinned", str(pins / "maps" / name)))["name"]
            == name
        )
