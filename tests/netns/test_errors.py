"""Bad input to the real service: the contract's error, with pointer and hint, and nothing changed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.netns.topology import run
from tests.netns.traffic import add_rule, assert_blocked, ping, udp
from tests.netns.world import World

MakeWorld = Callable[..., World]
KEPT = {"id": "kept", "sources": ["10.90.0.2"]}


@pytest.fixture
def world(shared_world: World) -> World:
    add_rule(shared_world, **KEPT)
    return shared_world


def everything(world: World) -> list[Any]:
    return [world.api.get(path).json() for path in ("/v1/ruleset", "/v1/interfaces")]


def refusal(world: World, method: str, path: str, body: Any, status: int) -> dict[str, Any]:
    """Make a request that must be refused and change nothing; answers its problem."""
    before, etag = everything(world), world.api.get("/v1/ruleset").headers["etag"]
    answer = world.api.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = dict(answer.json())
    assert (problem["status"], problem["instance"]) == (status, path)
    assert problem["hint"] or status == 404
    assert everything(world) == before
    assert world.api.get("/v1/ruleset").headers["etag"] == etag
    return problem


BAD_RULES = [
    ({"soures": ["10.0.0.1"]}, "/soures", "unknown"),
    ({"sources": ["203.0.113.7/24"]}, "/sources/0", "203.0.113.0/24"),
    ({"sources": ["2001:db8::1/32"]}, "/sources/0", "2001:db8::/32"),
    ({"sources": ["10.0.0.1", "10.0.0.256"]}, "/sources/1", "10.0.0.256"),
    ({"protocols": ["icmp"], "destination_ports": ["80"]}, "/destination_ports", "tcp"),
    ({"destination_ports": ["8100-8000"]}, "/destination_ports/0", "8100-8000"),
    ({"destination_ports": [70000]}, "/destination_ports/0", "65535"),
    ({"priority": 65536}, "/priority", "65535"),
    ({"priority": -1}, "/priority", "0"),
    ({"action": "reject"}, "/action", "drop"),
    ({"direction": "sideways"}, "/direction", "ingress"),
    ({"interfaces": ["absent0"]}, "/interfaces/0", "absent0"),
]


@pytest.mark.parametrize(("rule", "pointer", "says"), BAD_RULES, ids=[pointer for _, pointer, _ in BAD_RULES])
def test_a_bad_rule_is_refused_at_the_place_where_it_is_wrong(
    world: World, rule: dict[str, Any], pointer: str, says: str
) -> None:
    problem = refusal(world, "POST", "/v1/rules", {"id": "bad", **rule}, 422)
    found = {fault["pointer"]: fault["detail"] for fault in problem["errors"]}
    assert pointer in found
    assert says in found[pointer] + (problem["hint"] or "")
    good = {"id": "good", "protocols": ["udp"]}
    problem = refusal(world, "POST", "/v1/rules/batch", {"add": [good, {"id": "bad", **rule}]}, 422)
    assert f"/add/1{pointer}" in [fault["pointer"] for fault in problem["errors"]]
    problem = refusal(world, "PUT", "/v1/ruleset", {"rules": [{"id": "bad", **rule}]}, 422)
    assert f"/rules/0{pointer}" in [fault["pointer"] for fault in problem["errors"]]
    assert_blocked([ping(world)], "after the refused changes")
    assert udp(world, 5353, 6).passes()


def test_an_id_that_is_taken_or_missing_is_said_so(world: World) -> None:
    assert (
        refusal(world, "POST", "/v1/rules", {"id": "kept", "sources": "10.0.0.1"}, 409)["code"]
        == "rule_exists"
    )
    assert refusal(world, "DELETE", "/v1/rules/absent", None, 404)["code"] == "rule_not_found"
    assert (
        refusal(world, "POST", "/v1/rules/batch", {"delete": ["kept", "absent"]}, 404)["code"]
        == "rule_not_found"
    )
    assert_blocked([ping(world)], "after the refused changes")


def test_an_unknown_interface_cannot_be_attached(world: World) -> None:
    problem = refusal(world, "PUT", "/v1/interfaces/absent0", {}, 404)
    assert problem["code"] == "interface_not_found"
    assert "fw0" in problem["hint"]
    assert (
        refusal(world, "PUT", "/v1/interfaces/fw0", {"mode": "fast"}, 422)["errors"][0]["pointer"] == "/mode"
    )


# Full tables


@pytest.fixture
def small(make_world: MakeWorld) -> World:
    return make_world(bpf={"max_addresses": 4, "max_rules": 2})


def test_a_full_address_table_refuses_the_whole_change(small: World) -> None:
    add_rule(small, id="peer", sources=[small.link.peer_address(), "192.0.2.1", "192.0.2.2"])
    more = [{"id": f"more-{number}", "sources": f"192.0.2.1{number}"} for number in range(2)]
    for method, path, body in (
        ("POST", "/v1/rules/batch", {"add": more}),
        ("POST", "/v1/rules", {"id": "more", "sources": ["192.0.2.10", "192.0.2.11"]}),
        ("PUT", "/v1/ruleset", {"rules": [{"sources": [f"192.0.2.{number}" for number in range(5)]}]}),
    ):
        problem = refusal(small, method, path, body, 507)
        assert (problem["code"], problem["table"]) == ("table_full", "address4")
        assert (problem["capacity"], problem["wanted"], problem["setting"]) == (4, 5, "bpf.max_addresses")
        assert "bpf.max_addresses" in problem["hint"]
    assert_blocked([ping(small)], "after the refused changes")
    add_rule(small, **more[0])
    fill = {
        each["name"]: (each["used"], each["capacity"]) for each in small.api.get("/v1/status").json()["maps"]
    }
    assert fill["address4"] == (4, 4)
    assert small.api.delete("/v1/rules/more-0").status_code == 204
    add_rule(small, **more[1])


def test_a_full_policy_refuses_the_whole_change(small: World) -> None:
    assert udp(small, 5001).passes() and udp(small, 5003).passes()
    for port in (5001, 5002):
        add_rule(small, id=f"port-{port}", protocols="udp", destination_ports=port)
    rule = {"id": "port-5003", "protocols": ["udp"], "destination_ports": [5003]}
    problem = refusal(small, "POST", "/v1/rules", rule, 507)
    assert (problem["table"], problem["capacity"], problem["wanted"]) == ("policy_rules", 2, 3)
    assert problem["setting"] == "bpf.max_rules"
    assert udp(small, 5001).is_blocked() and udp(small, 5003).passes()
    batch = {"delete": ["port-5001"], "add": [rule]}
    assert small.api.post("/v1/rules/batch", json=batch).status_code == 200
    assert udp(small, 5001).passes() and udp(small, 5003).is_blocked()


# Configuration


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        ({"api": {"listen": "0.0.0.0:9378"}}, ["api.listen", "loopback"]),
        ({"api": {"listen": "[::]:9378"}}, ["api.listen", "loopback"]),
        ({"api": {"listen": ["127.0.0.1:9378", "10.90.0.1:9378"]}}, ["api.listen", "10.90.0.1"]),
        ({"filter": {"default_ingres": "drop"}}, ["filter.default_ingres", "unknown key"]),
        ({"filter": {"default_ingress": "block"}}, ["filter.default_ingress", "allow"]),
        ({"bpf": {"max_rules": 0}}, ["bpf.max_rules"]),
        ({"surprise": {}}, ["surprise", "unknown key"]),
        ({"interfaces": [{"name": "fw0", "mod": "auto"}]}, ["interfaces.0.mod", "unknown key"]),
    ],
)
def test_a_wrong_configuration_ends_the_service_and_names_the_key(
    make_world: MakeWorld, configuration: dict[str, Any], says: list[str]
) -> None:
    world = make_world(start=False, **configuration)
    world.daemon.launch()
    assert world.daemon.process is not None
    assert world.daemon.process.wait(30) == 2
    world.daemon.process = None
    for each in says:
        assert each in world.daemon.log
    assert "Traceback" not in world.daemon.log
    assert nothing_was_touched(world)


def test_a_state_directory_that_cannot_be_written_ends_the_service(make_world: MakeWorld) -> None:
    """Root may write anywhere but on a file system that is read-only."""
    world = make_world(start=False)
    directory = world.topology.directory / "read-only"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(directory))
    try:
        world.daemon.configure(
            {"state": {"directory": str(directory / "state")}, "interfaces": [{"name": "fw0"}]}
        )
        world.daemon.launch()
        assert world.daemon.process is not None
        assert world.daemon.process.wait(60) == 1
        world.daemon.process = None
    finally:
        run("umount", str(directory))
    assert str(directory) in world.daemon.log
    assert "state.directory" in world.daemon.log
    assert "Traceback" not in world.daemon.log
    assert nothing_was_touched(world)


def nothing_was_touched(world: World) -> bool:
    link = run("ip", "-n", world.topology.protected, "link", "show", "dev", "fw0")
    qdiscs = run("tc", "-n", world.topology.protected, "qdisc", "show", "dev", "fw0")
    return "xdp" not in link and "clsact" not in qdiscs and not world.daemon.pin_root.exists()


# The command line


def cli(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*world.daemon.command, *arguments, "--config", str(world.daemon.configuration_path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["rule", "add", "--id", "new", "--source", "192.0.2.7"], 0, "added new"),
        (["rule", "add", "--id", "kept", "--source", "10.90.0.2"], 0, "was already there"),
        (["rule", "add"], 2, ""),
        (["rule", "add", "--sauce", "192.0.2.7"], 2, "--sauce"),
        (["rule", "add", "--source", "192.0.2.7/24"], 4, "192.0.2.0/24"),
        (["rule", "add", "--id", "kept", "--source", "192.0.2.7"], 11, "kept"),
        (["rule", "show", "absent"], 12, "absent"),
        (["rule", "delete", "absent"], 12, "absent"),
        (["interface", "attach", "absent0"], 12, "absent0"),
        (["status", "--url", "unix:/nowhere/api.sock"], 3, "/nowhere/api.sock"),
    ],
)
def test_the_command_line_ends_with_the_documented_status(
    world: World, arguments: list[str], status: int, says: str
) -> None:
    done = cli(world, *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_blocks_and_gives_back(world: World) -> None:
    probe = udp(world, 5353, 6)
    assert probe.passes()
    source = world.link.peer_address(6)
    assert cli(world, "rule", "add", "--id", "six", "--source", source).returncode == 0
    assert probe.is_blocked()
    shown = cli(world, "rule", "show", "six", "--json")
    assert json.loads(shown.stdout)["stats"]["packets"] == 1
    assert cli(world, "rule", "delete", "six").returncode == 0
    assert probe.passes()
    status = cli(world, "status", "--json")
    assert json.loads(status.stdout)["ready"] is True
