"""Other tools take our filters away, get in front of them, remove pins, edit maps: seen within seconds, mended."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from firewall.kernel import bpf
from firewall.layout import FRONT_ROW
from tests.netns.test_interfaces import ROOT, add_link, answers, attached_hooks, links, put_foreign_programs
from tests.netns.topology import run, wait_until
from tests.netns.traffic import add_rule, ping, udp
from tests.netns.world import World

MakeWorld = Callable[..., World]
WITHIN_S = 8.0


@pytest.fixture
def protected(world: World) -> World:
    add_rule(world, id="peer", sources=["10.90.0.2"])
    add_rule(world, id="peer6", sources=["2001:db8::6"])
    add_rule(world, id="port", protocols=["udp"], destination_ports=[5001], family="ipv6")
    add_rule(world, id="outward", direction="egress", protocols=["udp"], destination_ports=[5353])
    assert ping(world).is_blocked() and udp(world, 5001, 6).is_blocked()
    return world


@pytest.fixture
def reporting(make_world: MakeWorld) -> World:
    world = make_world(service={"on_drift": "report"})
    add_rule(world, id="peer", sources=["10.90.0.2"])
    return world


def ip(world: World, *arguments: str) -> str:
    return run("ip", "-n", world.topology.protected, *arguments)


def tc(world: World, *arguments: str) -> str:
    return run("tc", "-n", world.topology.protected, *arguments)


def reasons(world: World) -> str:
    return world.api.get("/readyz").text


def healed(world: World, kind: str) -> int:
    for line in world.api.get("/metrics").text.splitlines():
        if line.startswith(f'ebpf_fw_drift_healed_total{{kind="{kind}"}}'):
            return int(float(line.split()[-1]))
    raise AssertionError("there is no such metric")


def wait_for_healing(world: World, kind: str) -> None:
    wait_until(lambda: healed(world, kind) > 0, f"{kind} is healed", timeout_s=WITHIN_S)
    wait_until(lambda: world.api.get("/readyz").status_code == 200, "it is ready again", timeout_s=WITHIN_S)
    assert f"kind={kind}" in world.daemon.log


def test_a_program_that_was_taken_off_is_back_within_a_second(protected: World) -> None:
    before = links(protected)
    started = time.monotonic()
    ip(protected, "link", "set", "dev", "fw0", "xdp", "off")
    wait_until(lambda: "xdp" in ip(protected, "link", "show", "dev", "fw0"), "it is attached again")
    assert time.monotonic() - started < 1.5, "netlink tells at once"
    tc(protected, "qdisc", "del", "dev", "fw0", "clsact")
    wait_until(
        lambda: (
            "clsact" in tc(protected, "qdisc", "show", "dev", "fw0")
            and "fw_tc" in tc(protected, "filter", "show", "dev", "fw0", "egress")
        ),
        "the egress filter is back",
    )
    wait_for_healing(protected, "hook")
    assert healed(protected, "hook") == 2
    assert ping(protected).is_blocked()
    assert links(protected).count("fw_") == before.count("fw_")


def test_where_it_reports_nothing_is_put_back_until_somebody_says_so(reporting: World) -> None:
    ip(reporting, "link", "set", "dev", "fw0", "xdp", "off")
    wait_until(lambda: "detached" in reasons(reporting), "it is told")
    time.sleep(2.5)  # a whole look around
    assert "xdp" not in ip(reporting, "link", "show", "dev", "fw0")
    assert ping(reporting).passes()
    assert reporting.api.put("/v1/interfaces/fw0").status_code == 200
    assert ping(reporting).is_blocked()
    wait_until(lambda: reporting.api.get("/readyz").status_code == 200, "it is ready")


def replace_ours(world: World) -> None:
    """Another owner's XDP program takes the hook, by force."""
    ip(world, "link", "set", "dev", "fw0", "xdp", "off")
    tc(world, "qdisc", "del", "dev", "fw0", "clsact")
    put_foreign_programs(world)


def test_a_program_of_another_owner_in_our_place_is_named_and_left_until_it_is_gone(reporting: World) -> None:
    replace_ours(reporting)
    wait_until(lambda: "other_xdp" in reasons(reporting), "it is told", timeout_s=WITHIN_S)

    def status_tells() -> bool:  # which may be a moment older, where a look is under way
        status = reporting.api.get("/v1/status").json()
        return not status["ready"] and any("other_xdp" in each for each in status["drift"])

    wait_until(status_tells, "the status tells it as well", timeout_s=WITHIN_S)
    assert "other_xdp" in reporting.daemon.log
    time.sleep(2.5)
    assert "other_xdp" in links(reporting)
    answer = reporting.api.put("/v1/interfaces/fw0", json={"force": True})
    assert answer.status_code == 200, answer.text
    assert ping(reporting).is_blocked()


def test_a_filter_before_ours_is_told_and_left_alone(protected: World) -> None:
    """The newest of one preference and kind is first."""
    program = protected.topology.bpffs / "first"
    code = "import sys; from tests.netns.foreign_programs import *; "
    code += "pin = ctypes.create_string_buffer(sys.argv[1].encode()); "
    code += "fd = load(SCHED_CLS, b'first_tc'); "
    code += "probe_bpf._bpf(OBJ_PIN, struct.pack('=QI', ctypes.addressof(pin), fd))"
    subprocess.run([sys.executable, "-c", code, str(program)], cwd=ROOT, check=True)
    where = f"dev fw0 egress protocol all pref 1 handle 7 bpf direct-action pinned {program}"
    run("ip", "netns", "exec", protected.topology.protected, "tc", "filter", "add", *where.split())
    wait_until(lambda: "first_tc" in reasons(protected), "it is told", timeout_s=WITHIN_S)
    assert "prio 1" in reasons(protected)
    time.sleep(2.5)
    assert "first_tc" in tc(protected, "filter", "show", "dev", "fw0", "egress")
    tc(protected, "filter", "del", "dev", "fw0", "egress", "pref", "1", "handle", "7", "bpf")
    wait_until(lambda: protected.api.get("/readyz").status_code == 200, "it is ready", timeout_s=WITHIN_S)
    assert udp(protected, 5353, 6, outward=True).is_blocked()


def test_pins_that_were_removed_come_back(protected: World) -> None:
    pins = protected.daemon.pin_root
    before = sorted(str(path) for path in pins.rglob("*"))
    shutil.rmtree(pins)
    wait_until(
        lambda: sorted(str(path) for path in pins.rglob("*")) == before, "they are back", timeout_s=WITHIN_S
    )
    wait_for_healing(protected, "pin")
    protected.kill9()
    assert ping(protected).is_blocked()
    protected.daemon.start()
    assert ping(protected).is_blocked()
    assert protected.stop() == 0 and not pins.exists()


def edit(world: World, name: str, how: Callable[[bpf.Map], None]) -> None:
    table = bpf.Map.pinned(world.daemon.pin_root / "maps" / name)
    try:
        how(table)
    finally:
        table.close()


def delete_all(table: bpf.Map) -> None:
    for key in list(table.keys()):
        table.delete(key)


def write_first(table: bpf.Map, at: int, value: bytes) -> None:
    key = next(iter(table.keys()))
    present = bytearray(table.lookup(key) or b"")
    present[at : at + len(value)] = value
    table.update(key, bytes(present))


def advance(table: bpf.Map) -> None:
    """The epoch's lowest bit chooses the generation of the policy."""
    present = table.lookup(bytes(4)) or b""
    write_first(table, 0, struct.pack("<Q", int.from_bytes(present[:8], "little") + 1))


def write_front(table: bpf.Map, at: int, value: bytes) -> None:
    """Into every row that is in use, `at` bytes behind its start."""
    rows = table.mapped(FRONT_ROW)
    used = rows["key"] != 0
    assert used.any()
    rows.view(np.uint8).reshape(len(rows), -1)[used, at : at + len(value)] = np.frombuffer(value, np.uint8)


# since, rank, old_rank: no rule until a late epoch.
NEVER = struct.pack("<QII", 1 << 60, 0, 0xFFFFFFFF)
EDITS: dict[str, tuple[str, Callable[[bpf.Map], Any]]] = {
    "an entry is deleted": ("address6", delete_all),
    "an entry gets another rank": ("address6", lambda table: write_first(table, 8, b"\xff" * 8)),
    "an entry waits for a day that never comes": ("address6", lambda table: write_first(table, 0, NEVER)),
    "an entry is taken from the front": ("address_front", lambda table: write_front(table, 0, bytes(8))),
    "one gets another rank there": ("address_front", lambda table: write_front(table, 16, b"\xff" * 8)),
    "one waits for ever there": ("address_front", lambda table: write_front(table, 8, NEVER)),
    "the epoch is the next": ("control_map", lambda table: advance(table)),
    "no list has prefixes": ("control_map", lambda table: write_first(table, 8, bytes(32))),
    "the filter is empty": ("address_filter", lambda table: empty(table)),
    "policy prefixes": ("policy_rules", lambda table: [write_rule(table, n) for n in range(2)]),
}


def empty(table: bpf.Map) -> None:
    table.mapped(np.dtype([("word", "<u8")]))["word"] = 0


def write_rule(table: bpf.Map, number: int) -> None:
    """The first rule of a generation at ingress."""
    rows = table.info.max_entries // 4
    key = (number * 2 * rows).to_bytes(4, "little")
    table.update(key, bytes(table.info.value_size))


@pytest.mark.parametrize("what", EDITS)
def test_maps_that_were_edited_are_mended(protected: World, what: str) -> None:
    time.sleep(2.5)  # after a change, a look has to have been there
    name, how = EDITS[what]
    edit(protected, name, how)
    wait_for_healing(protected, "map")
    assert ping(protected).is_blocked() and udp(protected, 5001, 6).is_blocked()
    assert protected.api.delete("/v1/rules/peer").status_code == 204
    assert protected.api.delete("/v1/rules/port").status_code == 204
    assert ping(protected).passes() and udp(protected, 5001, 6).passes()


def test_changes_of_our_own_are_no_drift(protected: World) -> None:
    end = time.monotonic() + 6
    number = 0
    while time.monotonic() < end:
        number += 1
        for each in ({"sources": f"203.0.113.{number % 250}"}, {"protocols": ["tcp"], "ttl": 1}):
            assert protected.api.post("/v1/rules", json={"id": f"r{number}", **each}).status_code in (
                201,
                409,
            )
        protected.api.delete(f"/v1/rules/r{number - 5}")
        time.sleep(0.05)
    assert "drift" not in protected.daemon.log
    for line in protected.api.get("/metrics").text.splitlines():
        if line.startswith("ebpf_fw_drift_detected_total"):
            assert line.endswith(" 0.0")


def test_an_interface_is_attached_before_it_is_up(make_world: MakeWorld) -> None:
    world = make_world(interfaces=[{"name": "fw*"}])
    add_rule(world, id="all", sources=["0.0.0.0/0"])
    waits = []
    for number in range(3, 8):
        name = f"fw{number}"
        add_link(world, name)
        started = time.monotonic()
        wait_until(lambda name=name: "xdp" in ip(world, "link", "show", "dev", name), "XDP", step_s=0.002)
        waits.append(time.monotonic() - started)
        assert "state DOWN" in ip(world, "link", "show", "dev", name)
    print(f"attached after {[round(each, 3) for each in waits]} s")
    assert min(waits) < 0.3


def test_an_interface_that_flaps_and_gets_other_names_stays_protected(make_world: MakeWorld) -> None:
    world = make_world(interfaces=[{"name": "fw*"}])
    add_rule(world, id="peer", sources=["10.90.0.2"])
    program = world.api.get("/v1/interfaces/fw0").json()["hooks"][0]["program_id"]
    for _ in range(3):
        ip(world, "link", "set", "dev", "fw0", "down")
        ip(world, "link", "set", "dev", "fw0", "name", "fwx")
        ip(world, "link", "set", "dev", "fwx", "name", "fw0")
        ip(world, "link", "set", "dev", "fw0", "up")
    wait_until(lambda: attached_hooks(world, "fw0") == [True, True], "fw0 is attached")
    assert world.api.get("/v1/interfaces/fw0").json()["hooks"][0]["program_id"] == program
    world.topology._carriers_are_up()
    assert ping(world).is_blocked()
    ip(world, "link", "set", "dev", "fw0", "down")
    ip(world, "link", "set", "dev", "fw0", "name", "other0")
    wait_until(lambda: "xdp" not in ip(world, "link", "show", "dev", "other0"), "nobody asked for other0")
    ip(world, "link", "set", "dev", "other0", "name", "fw0")
    wait_until(lambda: attached_hooks(world, "fw0") == [True, True], "fw0 is attached")


def test_a_hook_that_was_refused_at_the_start_is_attached_when_it_is_free(make_world: MakeWorld) -> None:
    world = make_world(start=False)
    put_foreign_programs(world)
    world.daemon.launch()
    wait_until(lambda: answers(world), "the service has started", timeout_s=90)
    assert "other_xdp" in reasons(world)
    ip(world, "link", "set", "dev", "fw0", "xdpgeneric", "off")
    wait_until(lambda: attached_hooks(world, "fw0") == [True, True], "fw0 is attached", timeout_s=WITHIN_S)
    wait_until(lambda: world.api.get("/readyz").status_code == 200, "it is ready", timeout_s=WITHIN_S)
