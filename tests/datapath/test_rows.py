"""Rows of large IPv4 tables: what stands in them, moves to larger ones or finds no row is judged and counted alike.

The front is made so small that a few entries are a large table. Each test says where its entries stand.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firewall.address_list import parse_list
from firewall.datapath import Key
from firewall.errors import KernelRefused
from firewall.kernel import address_table, bpf
from firewall.kernel import maps as firewall_maps
from firewall.kernel.address_rows import AddressRows, rows_in_use
from firewall.kernel.bpf import Map
from firewall.kernel.grace import GracePeriod
from firewall.kernel.maps import PinnedMaps
from firewall.kernel.row_memory import MappedRows
from firewall.layout import FRONT_ROW
from tests.datapath.contents import assert_exact, behind, bucket_of, in_rows
from tests.datapath.flood import running
from tests.datapath.frames import tcp
from tests.datapath.loaded import XDP_PASS, Judged, Loaded

PASSES, DROPPED, ALLOWED = Judged("pass", "default"), Judged("drop", "rule"), Judged("pass", "rule")
SIZE = len(tcp("10.0.0.1"))


@pytest.fixture(autouse=True)
def small_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_table, "FRONT_ENTRIES", 8)
    monkeypatch.setattr(address_table, "FEWEST_BUCKETS", 4)


def key(address: str) -> Key:
    return Key(4, 0, 32, int(ipaddress.IPv4Address(address)))


def many(count: int, network: int = 20) -> list[str]:
    return [f"{network}.{n >> 8 & 255}.{n & 255}.{n * 7 & 255}" for n in range(count)]


def import_many(loaded: Loaded, lines: list[str], priority: int = 7, action: str = "drop") -> None:
    loaded.enforcer.import_list(parse_list("\n".join(lines)), action, priority, "ingress")


def live(loaded: Loaded) -> tuple[int, int] | None:
    return loaded.kernel._set.maps.live_rows


def test_a_large_list_stands_in_rows_and_counts_there(fresh: Loaded) -> None:
    lines = many(3000)
    fresh.rules({"id": "net", "sources": ["20.0.0.0/12", "20.1.0.0/16"], "priority": 900})
    assert live(fresh) is None and len(in_rows(fresh)) == 2
    import_many(fresh, lines)
    fresh.kernel.settle()
    assert live(fresh) is not None
    found, back = in_rows(fresh), behind(fresh)
    assert len(found) + len(back) == 3002 and len(found) > 0.85 * 3002
    assert back, "some find their bucket full, or this test says nothing of them"
    for lines_of in (found, back):
        for each in list(lines_of)[::37]:
            source = str(ipaddress.IPv4Address(each.address))
            before = fresh.kernel.address_hits([each])[0].packets
            assert fresh.judge(tcp(source)) == DROPPED
            assert fresh.kernel.address_hits([each])[0].packets == before + 1
    assert fresh.judge(tcp("20.15.200.200")) == DROPPED and fresh.judge(tcp("21.0.0.1")) == PASSES
    assert_exact(fresh)


def test_growth_moves_all_with_what_they_counted_and_lets_no_packet_through(fresh: Loaded) -> None:
    """From the front to rows, and to larger ones, while packets count."""
    host = "20.0.0.0"
    fresh.rules({"id": "host", "sources": [host], "priority": 1})
    assert fresh.judge(tcp(host)) == DROPPED
    sizes = []
    with running(fresh.program("ingress"), tcp(host), repeat=2_000, rounds=6):
        for number, count in enumerate((6, 40, 400, 3000)):
            import_many(fresh, many(count, 30 + number))
            sizes.append(live(fresh))
            assert key(host) in in_rows(fresh)
    assert sizes[0] is None and len({each[0] for each in sizes[1:] if each}) == 2
    assert sizes[1:] == sorted(sizes[1:], key=lambda each: each[1] if each else 0) and len(set(sizes)) == 4
    seen = fresh.counted_since_last()
    assert set(seen) == {("ingress", "drop", "rule")}
    packets, size = seen["ingress", "drop", "rule"]
    assert packets > 10_000
    assert fresh.hits("host") == (packets + 1, size + SIZE), "hits got lost on the way"
    assert_exact(fresh)


def test_a_list_that_is_written_again_and_again_stays_in_its_rows(fresh: Loaded) -> None:
    lines = many(2000)
    fresh.rules({"id": "all", "sources": lines, "priority": 10})
    rows, back, size = set(in_rows(fresh)), behind(fresh), live(fresh)
    host = str(ipaddress.IPv4Address(next(iter(rows)).address))
    with running(fresh.program("ingress"), tcp(host), repeat=2_000, rounds=6):
        for turn in range(5):
            fresh.edit("all", priority=11 + turn)
            assert (set(in_rows(fresh)), behind(fresh), live(fresh)) == (rows, back, size)
            fresh.edit("all", description=f"turn {turn}")
    assert {verdict for _, verdict, _ in fresh.counted_since_last()} == {"drop"}
    assert_exact(fresh)
    fresh.edit("all", action="allow")
    assert (set(in_rows(fresh)), behind(fresh)) == (rows, back)
    assert {fresh.judge(tcp(each)) for each in lines[::41]} == {ALLOWED}
    fresh.delete("all")
    assert {fresh.judge(tcp(each)) for each in lines[::41]} == {PASSES}
    fresh.kernel.settle()
    assert not in_rows(fresh) and not behind(fresh)
    fresh.rules({"id": "all", "sources": lines, "priority": 10})
    assert (set(in_rows(fresh)), behind(fresh)) == (rows, back), "cleared rows are not taken again"
    assert_exact(fresh)


def test_addresses_of_one_bucket_go_behind_whose_map_grows(
    fresh: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_many(fresh, many(60))
    size = live(fresh)
    assert size is not None
    table = fresh.kernel._datapath._tables[4]
    room = fresh.kernel._set.maps["address4"].info.max_entries
    wanted: list[str] = []
    for number in range(1 << 24):
        address = f"40.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        if bucket_of(key(address), size[1]) == 3:
            wanted.append(address)
            if len(wanted) == 60:
                break
    # A map without room for them, as a large table's is.
    monkeypatch.setattr(table, "_most_behind", room - room // 25 - 1)
    monkeypatch.setattr(address_table, "_room_of", lambda buckets: 1 << 20)
    monkeypatch.setattr(AddressRows, "put", refuses(AddressRows.put))
    fresh.rules({"id": "all", "sources": wanted})
    assert len(behind(fresh)) >= 56
    assert {fresh.judge(tcp(each)) for each in wanted} == {DROPPED}
    assert fresh.hits("all") == (60, 60 * SIZE)
    assert_exact(fresh)


def refuses(put: Callable[..., Any]) -> Callable[..., Any]:
    return put


GROWTH: list[tuple[Any, str]] = [
    (Map, "inner_array"),
    (firewall_maps, "pin"),
    (Map, "point_at"),
    (AddressRows, "put"),
    (PinnedMaps, "use_rows"),
    (GracePeriod, "wait"),
    (AddressRows, "add_hits"),
    (Map, "delete_batch"),
]


@pytest.mark.parametrize(("owner", "step"), GROWTH, ids=[step for _, step in GROWTH])
def test_growth_that_fails_at_a_step_leaves_the_rules_that_there_were(
    fresh: Loaded, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str
) -> None:
    def refuse(*_: object) -> None:
        raise KernelRefused("the kernel said no")

    lines = many(40)
    fresh.rules({"id": "few", "sources": lines})
    assert [fresh.judge(tcp(each)) for each in lines[:9]] == [DROPPED] * 9
    hits, was = fresh.all_hits(), live(fresh)
    with running(fresh.program("ingress"), tcp(lines[0]), repeat=2_000):
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, refuse)
            failed = False
            try:
                fresh.add(id="many", sources=many(400, 40))
            except KernelRefused:
                failed = True
        assert failed or step == "delete_batch"  # nothing stood behind
        if failed:
            assert bpf.test_run(fresh.program("ingress"), tcp("40.0.0.0"))[0] == XDP_PASS
    assert {verdict for _, verdict, _ in fresh.counted_since_last()} <= {"drop", "pass"}
    assert {fresh.judge(tcp(each)) for each in lines} == {DROPPED}
    fresh.rules({"id": "few", "sources": lines})
    fresh.add(id="more", sources=many(401, 40))
    assert live(fresh) != was
    assert {fresh.judge(tcp(each)) for each in lines + many(401, 40)} == {DROPPED}
    assert_exact(fresh)
    assert fresh.all_hits()["few"] >= hits["few"]


@pytest.mark.parametrize("step", ["put", "use_rows", "_tidy", "add_hits"])
def test_a_start_after_growth_that_was_cut_off_finds_every_entry_once(
    fresh: Loaded, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Dies(BaseException):
        pass

    def die(*_: object) -> None:
        raise Dies

    lines = many(40)
    fresh.rules({"id": "few", "sources": lines})
    owner = {
        "put": AddressRows,
        "add_hits": AddressRows,
        "use_rows": PinnedMaps,
        "_tidy": address_table.AddressTable,
    }
    tidy = address_table.AddressTable._tidy
    with monkeypatch.context() as patch:
        patch.setattr(owner[step], step, die)
        patch.setattr(address_table.AddressTable, "_tidy", die)  # nobody is left to
        with pytest.raises(Dies), running(fresh.program("ingress"), tcp(lines[0]), repeat=2_000):
            fresh.add(id="many", sources=many(400, 40))
    assert address_table.AddressTable._tidy is tidy
    fresh.restart()
    assert {fresh.judge(tcp(each)) for each in lines} == {DROPPED}
    assert fresh.judge(tcp("40.0.0.0")) == PASSES
    assert_exact(fresh)
    fresh.add(id="many", sources=many(400, 40))
    assert {fresh.judge(tcp(each)) for each in lines + many(400, 40)} == {DROPPED}
    assert_exact(fresh)


def test_a_start_finds_the_rows_as_they_were(fresh: Loaded) -> None:
    lines = many(500)
    fresh.rules({"id": "all", "sources": lines})
    fresh.judge(tcp(lines[0]))
    rows, back, size, programs = set(in_rows(fresh)), behind(fresh), live(fresh), fresh.program_ids()
    fresh.restart()
    assert (set(in_rows(fresh)), behind(fresh), live(fresh)) == (rows, back, size)
    assert fresh.program_ids() == programs, "compiled again"
    assert fresh.judge(tcp(lines[0])) == DROPPED
    assert fresh.hits("all") == (2, 2 * SIZE)


def test_growth_of_the_policy_keeps_the_rows(fresh: Loaded) -> None:
    lines = many(500)
    fresh.rules({"id": "all", "sources": lines})
    rows, size = set(in_rows(fresh)), live(fresh)
    fresh.batch(
        [
            {
                "id": f"v{n}",
                "sources": [f"100.{n >> 8}.{n & 255}.0/24"],
                "destination_ports": [2 * n],
                "priority": n,
            }
            for n in range(1200)
        ],
        [],
    )
    assert (set(in_rows(fresh)), live(fresh)) == (rows, size)
    fresh.delete("all")
    fresh.kernel.settle()
    assert not in_rows(fresh)
    assert_exact(fresh)


def look(loaded: Loaded) -> list[str]:
    return [each for _ in range(6) for each in loaded.kernel.audit(loaded.enforcer._ruleset.addresses)]


EDITS: dict[str, Callable[[Any], None]] = {
    "empty": lambda rows: rows["key"].fill(0),
    "other rank": lambda rows: rows["entry"]["rank"].__setitem__(rows["key"] != 0, 4),
    "elsewhere": lambda rows: rows["key"].__setitem__(slice(None), rows["key"][::-1].copy()),
    "twice": lambda rows: (
        rows["key"].reshape(-1, 4).__setitem__((slice(None), 3), rows["key"].reshape(-1, 4)[:, 0].copy())
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_others_write_into_rows_is_noticed_and_mended(fresh: Loaded, what: str) -> None:
    lines = many(300)
    fresh.rules({"id": "all", "sources": lines})
    fresh.kernel.settle()
    assert look(fresh) == []
    rows = rows_in_use(fresh.kernel._set.maps)
    rows._memory.need_all()
    EDITS[what](rows._memory.rows)
    rows.let_go()
    assert any("address4" in each for each in look(fresh))
    fresh.kernel.restore()
    fresh.kernel.reconcile(fresh.enforcer._image())
    assert look(fresh) == []
    assert {fresh.judge(tcp(each)) for each in lines} == {DROPPED}
    assert_exact(fresh)


def test_the_word_that_leads_to_rows_is_put_back(fresh: Loaded, fresh_directory: Path) -> None:
    lines = many(300)
    fresh.rules({"id": "all", "sources": lines})
    control = fresh.kernel._set.maps.control
    word = int(control["rows"])
    control["rows"] = word + 2000
    fresh.restart()
    assert int(fresh.kernel._set.maps.control["rows"]) == word
    assert {fresh.judge(tcp(each)) for each in lines} == {DROPPED}
    assert_exact(fresh)


def resident_of(memory: MappedRows) -> int:
    """Kilobytes of its addresses that count as memory of this process."""
    first, found, is_inside = memory.rows.ctypes.data, 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            begin = int(words[0].split("-")[0], 16)
            is_inside = first <= begin < first + memory.rows.nbytes
        elif is_inside and words[0] == "Rss:":
            found += int(words[1])
    return found


def test_rows_are_mapped_when_they_are_asked_for_and_let_go_when_they_are_many() -> None:
    buckets, a_page = 1 << 14, 4096 // FRONT_ROW.itemsize
    count = 4 * buckets
    table = address_table.new_rows(0, buckets)
    memory = MappedRows(table, count)
    assert resident_of(memory) == 0
    memory.need_one(5)
    memory.rows["key"][5] = 7
    memory.need_at(np.array([count - 1, 5, 6]))
    memory.rows["key"][count - 1] = 8
    assert resident_of(memory) == 2 * 4
    memory.let_go()
    assert resident_of(memory) == 2 * 4  # a few stay
    with memory.part(0, 10 * a_page):
        assert memory.rows["key"][: 10 * a_page].sum() == 7
        assert resident_of(memory) == 11 * 4
    assert resident_of(memory) == 4
    memory.need_at(np.arange(0, 257 * a_page, a_page))
    assert resident_of(memory) == memory.rows.nbytes // 1024
    memory.let_go()
    assert resident_of(memory) == 0
    for page in range(256):
        memory.need_one(page * a_page)
    memory.let_go()
    assert resident_of(memory) == 256 * 4
    memory.need_one(300 * a_page)  # they come by the hundred
    memory.let_go()
    assert resident_of(memory) == memory.rows.nbytes // 1024
    memory.rest()
    assert resident_of(memory) == 0
    memory.need_all()
    with memory.part(0, a_page):
        pass
    assert memory.rows["key"].sum() == 15
    memory.let_go()
    rows = memory.rows
    del memory
    rows_address = rows.ctypes.data
    assert f"{rows_address:x}-" in Path("/proc/self/maps").read_text(encoding="ascii")
    del rows
    assert f"{rows_address:x}-" not in Path("/proc/self/maps").read_text(encoding="ascii")
    table.close()
