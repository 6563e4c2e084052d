"""A damaged database, a full disk, a missing BPF file system: a clear error, and the filters judge as before."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.test_restart import blocked_traffic, fill, state
from tests.netns.topology import run, wait_until
from tests.netns.traffic import add_rule, assert_blocked, ethernet, frame, ip, ping, udp_to
from tests.netns.world import World

MakeWorld = Callable[..., World]


def ends_with_1(world: World) -> str:
    """Starts the service, which cannot; what it said."""
    said_before = len(world.daemon.log)
    world.daemon.launch()
    assert world.daemon.process is not None
    assert world.daemon.process.wait(60) == 1
    world.daemon.process = None
    said = world.daemon.log[said_before:]
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("damage", ["garbage", "truncated", "another schema", "no rules table"])
def test_a_damaged_database_ends_the_start_and_leaves_the_filters(world: World, damage: str) -> None:
    fill(world)
    before = set(state(world))
    world.kill9()
    database = world.daemon.directory / "state" / "rules.db"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    whole = database.read_bytes()
    if damage == "garbage":
        database.write_bytes(b"no database " * 1000)
    elif damage == "truncated":
        database.write_bytes(whole[: len(whole) // 2])
    else:
        with sqlite3.connect(database) as connection:
            change = "PRAGMA user_version = 99" if damage == "another schema" else "DROP TABLE rules"
            connection.execute(change)
        connection.close()
    said = ends_with_1(world)
    assert "rules.db" in said or "reading the rules" in said
    assert "backup" in said or "check the disk" in said or "install that one" in said
    assert_blocked(blocked_traffic(world), "after the failed start")
    for path in database.parent.glob("rules.db-*"):
        path.unlink()
    database.write_bytes(whole)
    world.daemon.start()
    assert set(state(world)) == before
    assert_blocked(blocked_traffic(world), "after the repair")


@pytest.fixture
def small_disk(make_world: MakeWorld) -> Iterator[tuple[World, Path]]:
    """The state on a tmpfs of 1 MB; `filler` takes what is left of it."""
    world = make_world(start=False)
    directory = world.topology.directory / "disk"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory))
    world.daemon.configure(
        {"state": {"directory": str(directory / "state")}, "interfaces": [{"name": "fw0"}]}
    )
    try:
        world.daemon.start()
        yield world, directory / "filler"
    finally:
        if world.daemon.process is not None:
            world.daemon.kill9()
        run("umount", "-l", str(directory))


def fill_up(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass


def test_a_full_disk_refuses_changes_and_loses_nothing(small_disk: tuple[World, Path]) -> None:
    world, filler = small_disk
    add_rule(world, id="kept", sources=["10.90.0.2"])
    fill_up(filler)
    refused = None
    acknowledged = {"kept"}
    for number in range(300):  # SQLite may have some pages left
        rule = {"id": f"r{number}", "sources": f"203.0.113.{number % 200}", "description": "x" * 500}
        answer = world.api.post("/v1/rules", json=rule)
        if answer.status_code != 201:
            refused = answer
            break
        acknowledged.add(f"r{number}")
    assert refused is not None and (refused.status_code, refused.json()["code"]) == (503, "store_failed")
    assert "full" in refused.json()["detail"]
    ready = world.api.get("/readyz")
    assert ready.status_code == 503 and "cannot be changed" in ready.text
    assert ping(world).is_blocked()
    filler.unlink()
    wait_until(lambda: world.api.get("/readyz").status_code == 200, "it is ready again", timeout_s=10)
    add_rule(world, id="after", sources=["203.0.113.250"])
    world.kill9()
    world.daemon.start()
    found = {each["id"] for each in world.api.get("/v1/rules?page_size=1000").json()["items"]}
    assert found == acknowledged | {"after"}
    assert ping(world).is_blocked()


def test_a_start_on_a_full_disk_leaves_the_filters(small_disk: tuple[World, Path]) -> None:
    world, filler = small_disk
    add_rule(world, id="kept", sources=["10.90.0.2"])
    world.kill9()
    fill_up(filler)
    world.daemon.launch()
    process = world.daemon.process
    assert process is not None
    wait_until(
        lambda: process.poll() is not None or "started" in world.daemon.log[-400:], "either", timeout_s=60
    )
    assert "Traceback" not in world.daemon.log
    assert ping(world).is_blocked()
    if process.poll() is None:
        world.kill9()
    world.daemon.process = None
    filler.unlink()
    world.daemon.start()
    assert ping(world).is_blocked()


def test_a_bpf_file_system_that_goes_is_made_again_and_no_listed_packet_passes(world: World) -> None:
    crafted = ethernet(world) / ip(world) / udp_to(4999)
    fill(world)
    assert frame(world, crafted).is_blocked()
    before = state(world)
    with world.flood(bytes(crafted)) as flood:
        # The service has a mount namespace of its own (`ip netns exec`).
        run("nsenter", "-t", str(world.daemon.pid), "-m", "umount", "-l", str(world.topology.bpffs))
        run("umount", "-l", str(world.topology.bpffs))
        wait_until(lambda: "drift healed" in world.daemon.log, "pinned again", timeout_s=10)
        wait_until(lambda: world.api.get("/readyz").status_code == 200, "ready", timeout_s=10)
        world.kill9()
        run("mount", "-t", "bpf", "bpffs", str(world.topology.bpffs))
        world.daemon.start()
    assert flood.sent > 100 and not flood.passed
    counted = state(world)["address"]["stats"]["packets"] - before["address"]["stats"]["packets"]
    assert counted == flood.sent
    assert_blocked(blocked_traffic(world), "after all that")


def test_a_database_that_cannot_be_written_refuses_changes_until_it_can(world: World) -> None:
    """Another process keeps it locked."""
    add_rule(world, id="kept", sources=["10.90.0.2"])
    database = world.daemon.directory / "state" / "rules.db"
    with sqlite3.connect(database, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = world.api.post("/v1/rules", json={"id": "refused", "sources": ["203.0.113.1"]}, timeout=60)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_failed")
        assert world.api.get("/readyz").status_code == 503
        assert ping(world).is_blocked()
        other.execute("ROLLBACK")
    other.close()
    wait_until(lambda: world.api.get("/readyz").status_code == 200, "it is ready again", timeout_s=20)
    add_rule(world, id="after", sources=["203.0.113.2"])
    assert {each["id"] for each in world.api.get("/v1/rules").json()["items"]} == {"kept", "after"}


@pytest.mark.parametrize(
    "gone", ["maps/address4", "maps/control_map", "programs/fw_xdp_ethernet", "maps", ""]
)
def test_pins_that_vanish_while_no_service_runs_open_no_gap(world: World, gone: str) -> None:
    crafted = ethernet(world) / ip(world) / udp_to(4999)
    fill(world)
    assert frame(world, crafted).is_blocked()
    before = set(state(world))
    world.kill9()
    with world.flood(bytes(crafted)) as flood:
        run("rm", "-r", str(world.daemon.pin_root / gone))
        world.daemon.start()
    assert flood.sent > 100 and not flood.passed
    assert set(state(world)) == before
    assert world.api.get("/readyz").status_code == 200
    assert_blocked(blocked_traffic(world), "after the start")


def test_pins_on_another_file_system_are_refused_with_what_to_do(make_world: MakeWorld) -> None:
    world = make_world(start=False)
    directory = world.topology.directory / "no bpffs"
    directory.mkdir()
    (directory / "file").write_text("somebody's")
    world.daemon.configure({"interfaces": [{"name": "fw0"}], "bpf": {"pin_root": str(directory)}})
    said = ends_with_1(world)
    assert "not on a bpf file system" in said and "bpf.pin_root" in said
    assert (directory / "file").exists()
    assert ping(world).passes(), "nothing was attached"
