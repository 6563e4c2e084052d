"""A change that nobody confirms goes by itself, also where the service was killed and nobody starts it again."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from tests.netns.conftest import MakeWorld
from tests.netns.world import World
from tests.unit.host import wait_for

LONG_S = 60


def drop_the_peer(world: World, seconds: int, **query: str) -> int:
    rule = {"id": "peer", "sources": world.link.peer_address(4)}
    response = world.api.post("/v1/rules", json=rule, params={"confirm_within": str(seconds), **query})
    assert response.status_code == 201, response.text
    assert world.ping() == 0
    return int(response.headers["Confirm-Id"])


def guardians(world: World) -> list[int]:
    """Processes that wait beside this world's service."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"api.guardian" in command and str(world.daemon.configuration_path.resolve()).encode() in command:
            found.append(int(process.name))
    return found


def state(world: World) -> list[str]:
    return [
        each["state"] for kind in ("pending", "recent") for each in world.api.get("/v1/changes").json()[kind]
    ]


def test_a_rule_that_nobody_confirms_goes_by_itself(world: World) -> None:
    assert world.ping() == 3
    drop_the_peer(world, 3)
    wait_for(lambda: state(world) == ["rolled_back"], LONG_S)
    assert world.ping() == 3
    assert world.api.get("/v1/rules/peer").status_code == 404
    wait_for(lambda: not guardians(world), LONG_S)


def test_a_rule_that_is_confirmed_stays_and_one_that_is_rolled_back_goes_at_once(world: World) -> None:
    drop_the_peer(world, 600)
    wait_for(lambda: guardians(world), LONG_S)
    assert world.api.post("/v1/rollback").status_code == 200
    assert world.ping() == 3
    drop_the_peer(world, 600)
    assert world.api.post("/v1/confirm").status_code == 200
    assert world.ping() == 0
    assert state(world) == ["confirmed", "rolled_back"]
    wait_for(lambda: not guardians(world), LONG_S)


def test_the_guardian_takes_the_change_back_when_the_service_was_killed_and_nobody_starts_it(
    world: World,
) -> None:
    world.api.post("/v1/rules", json={"id": "stays", "sources": "10.90.0.77"})
    drop_the_peer(world, 6)
    wait_for(lambda: guardians(world), LONG_S)
    world.kill9()
    assert world.ping() == 0
    wait_for(lambda: world.ping(count=1) == 1, LONG_S)
    wait_for(lambda: not guardians(world), LONG_S)
    assert world.ping() == 3
    world.daemon.start()
    assert state(world) == ["rolled_back"]
    assert [each["id"] for each in world.api.get("/v1/rules").json()["items"]] == ["stays"]


def test_a_service_that_starts_before_the_time_is_over_takes_the_change_back_itself(world: World) -> None:
    drop_the_peer(world, 8)
    world.kill9()
    world.daemon.start()
    assert state(world) in (["pending"], ["rolled_back"])
    wait_for(lambda: state(world) == ["rolled_back"], LONG_S)
    assert world.ping() == 3
    wait_for(lambda: not guardians(world), LONG_S)


def test_a_service_that_starts_while_the_guardian_acts_waits_for_it(world: World) -> None:
    drop_the_peer(world, 4)
    wait_for(lambda: guardians(world), LONG_S)
    world.kill9()
    lock = world.daemon.directory / "state" / "lock"
    wait_for(lambda: lock.read_bytes() == b"guardian" or world.ping(count=1) == 1, LONG_S)
    world.daemon.start()
    assert world.ping() == 3 and state(world) == ["rolled_back"]
    wait_for(lambda: not guardians(world), LONG_S)


def test_a_guardian_that_was_killed_is_replaced_and_two_of_them_do_no_harm(world: World) -> None:
    drop_the_peer(world, 20)
    wait_for(lambda: guardians(world), LONG_S)
    first = guardians(world)[0]
    os.kill(first, 9)
    wait_for(lambda: guardians(world) not in ([], [first]), LONG_S)
    database = world.daemon.directory / "state" / "rules.db"
    command = [
        "ip",
        "netns",
        "exec",
        world.topology.protected,
        world.daemon.command[0].replace("ebpf-fw", "python"),
    ]
    command += ["-m", "api.guardian", str(database), str(world.daemon.configuration_path.resolve())]
    with subprocess.Popen(command) as second:
        world.kill9()
        wait_for(lambda: world.ping(count=1) == 1, LONG_S)
        assert second.wait(LONG_S) == 0
    wait_for(lambda: not guardians(world), LONG_S)
    world.daemon.start()
    assert state(world) == ["rolled_back"]


def test_a_service_that_is_stopped_for_good_leaves_the_old_rules_in_the_store(world: World) -> None:
    drop_the_peer(world, 5)
    wait_for(lambda: guardians(world), LONG_S)
    assert world.stop() == 0
    assert world.ping() == 3
    wait_for(lambda: not guardians(world), LONG_S)
    world.daemon.start()
    assert state(world) == ["rolled_back"] and world.ping() == 3


def test_an_ssh_session_is_not_cut_off_unless_that_is_meant(make_world: MakeWorld) -> None:
    world = make_world()
    peer, here = world.link.peer_address(4), world.link.address(4)
    world.protected.listen("tcp", 22)
    inode = Path(f"/run/netns/{world.topology.peer}")
    assert inode.exists()
    script = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 22));"
        "print('up', flush=True); sys.stdin.read(1)"
    )
    command = ["ip", "netns", "exec", world.topology.peer, "/usr/bin/python3", "-c", script, here]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdout is not None and session.stdout.readline() == b"up\n"
        rule = {"id": "peer", "sources": f"{peer}/32"}
        for body in (rule, {"id": "all", "protocols": ["tcp"]}, {"id": "out", "direction": "egress"}):
            refused = world.api.post("/v1/rules", json=body)
            assert refused.status_code == 409, refused.text
            problem = refused.json()
            assert (
                problem["code"] == "lockout" and peer in problem["detail"] and body["id"] in problem["detail"]
            )
        assert world.ping() == 3
        assert world.api.post("/v1/rules", json={"id": "other", "sources": "10.90.0.77"}).status_code == 201
        effect = world.api.post("/v1/rules", json=rule, params={"dry_run": "true"})
        assert effect.status_code == 200 and effect.json()["lockouts"][0]["purpose"] == "ssh"
        assert world.api.post("/v1/rules", json=rule, params={"allow_lockout": "true"}).status_code == 201
        assert world.ping() == 0
        session.communicate(b"x")


def test_the_api_over_tcp_on_a_protected_loopback_is_not_cut_off(make_world: MakeWorld) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = make_world(start=False)
    world.daemon.configure(
        {
            "interfaces": [{"name": "lo"}],
            "api": {"listen": [f"unix:{world.daemon.socket}", f"127.0.0.1:{port}"]},
        }
    )
    world.start()
    for body in ({"protocols": ["tcp"]}, {"sources": "127.0.0.0/8"}, {"destination_ports": [str(port)]}):
        refused = world.api.post("/v1/rules", json=body)
        assert refused.status_code == 409 and refused.json()["code"] == "lockout", refused.text
        assert f"127.0.0.1:{port}" in refused.json()["detail"]
    assert world.api.post("/v1/rules", json={"destination_ports": [port + 1]}).status_code == 201
