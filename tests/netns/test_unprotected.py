"""What another takes from us is told at once, in both modes, and an interface is followed wherever it goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from firewall.layout import FRONT_ROW
from tests.netns.test_drift import WITHIN_S, edit, empty, ip, put_foreign_programs, reasons, tc, write_first
from tests.netns.test_interfaces import ROOT, add_link, attached_hooks, links
from tests.netns.topology import run, wait_until
from tests.netns.traffic import add_rule, ping, udp
from tests.netns.world import World

MakeWorld = Callable[..., World]


def fill(world: World) -> None:
    add_rule(world, id="peer", sources=["10.90.0.2"])
    add_rule(world, id="port", protocols=["udp"], destination_ports=[5001], family="ipv6")
    add_rule(world, id="outward", direction="egress", protocols=["udp"], destination_ports=[5353])
    assert ping(world).is_blocked() and udp(world, 5001, 6).is_blocked()


def detected(world: World, kind: str) -> int:
    for line in world.api.get("/metrics").text.splitlines():
        if line.startswith(f'ebpf_fw_drift_detected_total{{kind="{kind}"}}'):
            return int(float(line.split()[-1]))
    raise AssertionError("there is no such metric")


def is_ready(world: World) -> bool:
    return world.api.get("/readyz").status_code == 200


def in_our_place(world: World) -> None:
    """Another owner's filter replaces ours, with the preference and the handle that ours has."""
    program = world.topology.bpffs / "taker"
    code = "import sys; from tests.netns.foreign_programs import *; "
    code += "pin = ctypes.create_string_buffer(sys.argv[1].encode()); "
    code += "fd = load(SCHED_CLS, b'taker_tc'); "
    code += "probe_bpf._bpf(OBJ_PIN, struct.pack('=QI', ctypes.addressof(pin), fd))"
    subprocess.run([sys.executable, "-c", code, str(program)], cwd=ROOT, check=True)
    where = f"dev fw0 egress protocol all pref 1 handle 1 bpf direct-action pinned {program}"
    run("ip", "netns", "exec", world.topology.protected, "tc", "filter", "replace", *where.split())


def test_a_filter_that_took_our_place_is_named_and_left_until_it_is_gone(world: World) -> None:
    fill(world)
    in_our_place(world)
    wait_until(lambda: "taker_tc" in reasons(world), "it is told", timeout_s=WITHIN_S)
    assert "tc filter del dev fw0 egress pref 1" in reasons(world)
    assert world.api.get("/readyz").status_code == 503
    assert "taker_tc" in world.daemon.log and detected(world, "hook") == 1
    answer = world.api.put("/v1/interfaces/fw0", json={"force": True})
    assert answer.status_code == 409, "filters of others are never replaced"
    assert "taker_tc" in tc(world, "filter", "show", "dev", "fw0", "egress")
    tc(world, "filter", "del", "dev", "fw0", "egress", "pref", "1")
    wait_until(lambda: is_ready(world), "ours is back", timeout_s=WITHIN_S)
    assert udp(world, 5353, 6, outward=True).is_blocked()
    assert ping(world).is_blocked()


def take_egress(world: World) -> None:
    tc(world, "qdisc", "del", "dev", "fw0", "clsact")


def take_pins(world: World) -> None:
    shutil.rmtree(world.daemon.pin_root)


def take_entries(world: World) -> None:
    edit(world, "address4", lambda table: [table.delete(key) for key in list(table.keys())])
    edit(world, "address_front", lambda table: table.mapped(FRONT_ROW)["key"].fill(0))


def take_filter_bits(world: World) -> None:
    edit(world, "address_filter", empty)


def change_policy(world: World) -> None:
    edit(world, "policy_rules", lambda table: write_first(table, 0, b"\xff" * 8))


def change_control(world: World) -> None:
    edit(world, "control_map", lambda table: write_first(table, 8, bytes(32)))


def replace_ingress(world: World) -> None:
    ip(world, "link", "set", "dev", "fw0", "xdp", "off")
    tc(world, "qdisc", "del", "dev", "fw0", "clsact")
    put_foreign_programs(world)


@pytest.mark.parametrize(
    ("take", "kind"),
    [
        (take_egress, "hook"),
        (replace_ingress, "hook"),
        (take_pins, "pin"),
        (take_entries, "map"),
        (take_filter_bits, "map"),
        (change_policy, "map"),
        (change_control, "map"),
    ],
)
def test_where_it_only_reports_everything_is_told_and_nothing_put_back(
    make_world: MakeWorld, take: Callable[[World], None], kind: str
) -> None:
    world = make_world(service={"on_drift": "report"})
    fill(world)
    assert "drift" not in world.daemon.log and is_ready(world)
    wait_for_a_look()
    take(world)
    wait_until(lambda: not is_ready(world), "it is told", timeout_s=20)
    # Which may be a moment older, where a look is under way.
    wait_until(lambda: world.api.get("/v1/status").json()["drift"], "the status tells it", timeout_s=WITHIN_S)
    wait_until(lambda: f"kind={kind}" in world.daemon.log, "the log says so", timeout_s=WITHIN_S)
    assert detected(world, kind) >= 1
    wait_for_a_look()
    assert not is_ready(world)
    assert "drift healed" not in world.daemon.log
    world.daemon.kill9()
    world.daemon.configure({"interfaces": [{"name": "fw0"}], "service": {"on_drift": "heal"}})
    if take is replace_ingress:
        ip(world, "link", "set", "dev", "fw0", "xdpgeneric", "off")
    world.daemon.start()
    assert ping(world).is_blocked() and udp(world, 5001, 6).is_blocked()
    assert udp(world, 5353, 6, outward=True).is_blocked()


def wait_for_a_look() -> None:
    """That nothing happens in the time of two looks around cannot be waited for by a condition."""
    time.sleep(4.5)


def test_an_interface_that_leaves_for_another_namespace_and_comes_back_is_protected_again(
    world: World,
) -> None:
    fill(world)
    namespace, away = world.topology.protected, world.topology.peer
    ip(world, "link", "set", "dev", "fw0", "netns", away)
    wait_until(lambda: attached_hooks(world, "fw0") == [False, False], "fw0 is gone")
    assert is_ready(world), "an interface that is not there is no fault"
    assert "Traceback" not in world.daemon.log
    run("ip", "-n", away, "link", "set", "dev", "fw0", "netns", namespace)
    wait_until(lambda: attached_hooks(world, "fw0") == [True, True], "fw0 is attached again")
    assert "state DOWN" in ip(world, "link", "show", "dev", "fw0"), "before it is up"
    ip(world, "link", "set", "dev", "fw0", "up")
    for address in (world.link.address(4) + "/24", world.link.address(6) + "/64"):
        ip(world, "address", "replace", address, "dev", "fw0")
    wait_until(lambda: is_ready(world), "it is ready", timeout_s=WITHIN_S)
    assert ping(world).is_blocked()


def test_a_stop_takes_only_what_is_ours_and_the_clsact_that_it_leaves_empty(make_world: MakeWorld) -> None:
    """Another owner's programs stay on an interface that we hold at egress."""
    world = make_world(start=False, interfaces=[{"name": "fw*", "ingress": False}])
    put_foreign_programs(world)
    world.start()
    add_link(world, "fw5")
    wait_until(lambda: attached_hooks(world, "fw5") == [False, True], "fw5 is attached")
    assert attached_hooks(world, "fw0") == [False, True]
    assert world.stop() == 0
    left = links(world)
    assert "other_xdp" in left and "other_tc" in left and "fw_tc" not in left
    assert "clsact" not in run("tc", "-n", world.topology.protected, "qdisc", "show", "dev", "fw5")
