"""What `make uninstall` does to the kernel: the filters that outlive the service go, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.netns.topology import run
from tests.netns.world import World

SCRIPT = Path(__file__).parents[2] / "scripts/remove_filters.py"


def remove_filters(world: World) -> str:
    command = ["/usr/bin/python3", str(SCRIPT), str(world.daemon.configuration_path)]
    return run("ip", "netns", "exec", world.topology.protected, *command)


def drop_both_ways(world: World) -> None:
    rule = {"id": "block", "sources": [world.link.peer_address()]}
    assert world.api.post("/v1/rules", json=rule).status_code == 201
    outward = {"id": "block-out", "destinations": [world.link.peer_address(6)], "direction": "egress"}
    assert world.api.post("/v1/rules", json=outward).status_code == 201


def test_filters_that_outlive_the_service_are_removed_with_their_pins(world: World) -> None:
    assert (world.ping(4), world.ping(6)) == (3, 3)
    drop_both_ways(world)
    world.kill9()
    assert (world.ping(4), world.ping(6)) == (0, 0)

    said = remove_filters(world)

    assert "fw0: ingress filter removed" in said
    assert "fw0: egress filter removed" in said
    assert (world.ping(4), world.ping(6)) == (3, 3)
    assert not world.daemon.pin_root.exists()


def test_an_interface_that_is_not_ours_is_left_alone(world: World) -> None:
    world.stop()
    remove_filters(world)
    namespace = world.topology.protected
    subprocess.run(["tc", "-n", namespace, "qdisc", "add", "dev", "fw0", "clsact"], check=True)

    assert remove_filters(world) == ""

    assert "clsact" in run("tc", "-n", namespace, "qdisc", "show", "dev", "fw0")
