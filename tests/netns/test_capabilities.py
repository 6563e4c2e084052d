"""The service without CAP_SYS_ADMIN, which opens programs by their ids: they are known by their pins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from firewall.kernel import capability
from tests.netns.daemon import PROGRAM
from tests.netns.test_interfaces import put_foreign_programs
from tests.netns.topology import run
from tests.netns.traffic import add_rule, ping
from tests.netns.world import World

MakeWorld = Callable[..., World]
BOUNDED = ["setpriv", "--bounding-set", "-all,+bpf,+net_admin,+perfmon", str(PROGRAM)]
NEEDED = {capability.BPF, capability.NET_ADMIN, capability.PERFMON}


def program_ids(world: World) -> list[int]:
    return [hook["program_id"] for hook in world.api.get("/v1/interfaces/fw0").json()["hooks"]]


def shown(world: World) -> str:
    return run("ip", "-n", world.topology.protected, "-d", "link", "show", "dev", "fw0")


def test_a_whole_life_without_cap_sys_admin(make_world: MakeWorld) -> None:
    """Attach, restart after a kill, other programs in the place of ours, pins that others removed, detach."""
    world = make_world(start=False)
    world.daemon.command = BOUNDED
    assert ping(world).passes()
    world.daemon.start()
    assert capability.effective(Path(f"/proc/{world.daemon.pid}/status").read_text()) == NEEDED
    add_rule(world, id="peer", sources=["10.90.0.2"])
    assert ping(world).is_blocked()

    adopted = program_ids(world)
    world.kill9()
    world.daemon.start()
    assert program_ids(world) == adopted
    assert ping(world).is_blocked()

    # Tables of another size, so other programs, which take the place of the ones on the hooks.
    world.kill9()
    world.daemon.configure({"bpf": {"max_rules": 2048}, "interfaces": [{"name": "fw0"}]})
    world.daemon.start()
    assert set(program_ids(world)).isdisjoint(adopted)
    assert ping(world).is_blocked()

    # Known by the descriptors that the service holds, where the pins are gone.
    run("rm", "-r", str(world.daemon.pin_root / "programs"))
    assert world.api.delete("/v1/interfaces/fw0").status_code == 204
    assert "xdp" not in shown(world) and ping(world).passes()

    # Others' programs, of which only an id is to be seen: theirs, also with force.
    put_foreign_programs(world)
    before = shown(world)
    for force, status, said in ((False, 409, "another XDP program"), (True, 503, "without CAP_SYS_ADMIN")):
        refused = world.api.put("/v1/interfaces/fw0", json={"mode": "generic", "force": force})
        assert (refused.status_code, said in refused.text) == (status, True), refused.text
    assert shown(world) == before
    run("ip", "-n", world.topology.protected, "link", "set", "dev", "fw0", "xdpgeneric", "off")
    assert world.api.put("/v1/interfaces/fw0", json={"egress": False}).status_code == 200
    assert ping(world).is_blocked()
    assert world.stop() == 0
    assert "xdp" not in shown(world)
