"""The front of the IPv4 table: whatever stands in it, behind it or has moved is judged and counted alike.

Each test says where its entries stand, so that it cannot pass by the other path.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from firewall.datapath import Key
from firewall.errors import KernelRefused
from firewall.kernel.address_rows import AddressRows, front_of
from firewall.kernel.bpf import Map
from firewall.kernel.datapath import KernelDatapath
from firewall.layout import HOOKS
from tests.datapath.contents import assert_exact, behind, bucket_of, in_rows
from tests.datapath.flood import running
from tests.datapath.frames import tcp
from tests.datapath.loaded import INTERFACES, Judged, Loaded

PASSES, DROPPED, ALLOWED = Judged("pass", "default"), Judged("drop", "rule"), Judged("pass", "rule")
HOST = "10.0.0.1"
SIZE = len(tcp(HOST))


def host(address: str, scope: int = 0) -> Key:
    return Key(4, scope, 32, int(ipaddress.IPv4Address(address)))


def twins() -> tuple[str, str]:
    """Two addresses of one row."""
    seen: dict[int, str] = {}
    for number in range(1 << 16):
        address = f"10.7.{number >> 8}.{number & 255}"
        other = seen.setdefault(bucket_of(host(address)), address)
        if other != address:
            return other, address
    raise AssertionError("every address has a row of its own")


@pytest.fixture(autouse=True)
def rows_are_free(request: pytest.FixtureRequest) -> None:
    """Those that the test before has left."""
    if "firewall" in request.fixturenames:
        loaded = request.getfixturevalue("firewall")
        if loaded.kernel._set.maps.live_rows is not None:  # another test had a large table
            loaded.renew()
            loaded.name_interfaces(**INTERFACES)
        loaded.kernel.settle()
        assert not in_rows(loaded)


def test_entries_of_a_small_list_stand_in_the_front_and_count_there(firewall: Loaded) -> None:
    rule = {"sources": [HOST, "10.1.0.0/16", "10.0.0.0/8"], "direction": "both"}
    firewall.rules(
        {"id": "first", **rule}, {"id": "out", "destinations": ["0.0.0.0/0"], "direction": "egress"}
    )
    assert len(in_rows(firewall)) == 7 and not behind(firewall)
    for hook in HOOKS:
        for source in (HOST, "10.1.2.3", "10.200.0.1"):
            assert firewall.judge(tcp(source), hook) == DROPPED
    assert firewall.judge(tcp("11.0.0.1")) == PASSES
    assert firewall.judge(tcp("11.0.0.1"), "egress") == DROPPED
    assert firewall.hits("first") == (6, 6 * SIZE) and firewall.hits("out") == (1, SIZE)
    assert_exact(firewall)


@pytest.mark.parametrize("settled", [False, True], ids=["at once", "after a while"])
def test_an_entry_that_is_edited_stays_in_its_row_with_what_it_counted(
    firewall: Loaded, settled: bool
) -> None:
    firewall.rules({"id": "a", "sources": [HOST]})
    assert firewall.judge(tcp(HOST)) == DROPPED
    if settled:
        firewall.kernel.settle()
    firewall.edit("a", action="allow")
    assert set(in_rows(firewall)) == {host(HOST)} and not behind(firewall)
    assert firewall.judge(tcp(HOST)) == ALLOWED
    assert firewall.hits("a") == (2, 2 * SIZE)
    firewall.delete("a")
    assert firewall.judge(tcp(HOST)) == PASSES
    assert_exact(firewall)


def test_a_prefix_that_goes_over_to_another_rule_stays_in_its_row_and_each_has_its_own_hits(
    firewall: Loaded,
) -> None:
    """The row's counters run on: what the first rule counted is not the second's."""
    firewall.rules({"id": "a", "sources": [HOST], "priority": 10})
    assert [firewall.judge(tcp(HOST)) for _ in range(3)] == [DROPPED] * 3
    for turn, (winner, verdict) in enumerate((("b", ALLOWED), ("c", DROPPED)), 1):
        firewall.add(
            id=winner, sources=[HOST], priority=10 - turn, action="allow" if verdict == ALLOWED else "drop"
        )
        assert set(in_rows(firewall)) == {host(HOST)} and not behind(firewall)
        assert firewall.hits(winner) == (0, 0)
        assert firewall.judge(tcp(HOST)) == verdict
    assert firewall.all_hits() == {"a": (3, 3 * SIZE), "b": (1, SIZE), "c": (1, SIZE)}
    firewall.delete("c")
    firewall.batch([], ["b"])
    assert firewall.judge(tcp(HOST)) == DROPPED
    assert firewall.all_hits() == {"a": (4, 4 * SIZE)}
    assert_exact(firewall)


def test_a_row_is_taken_again_only_when_no_packet_is_left_that_may_read_it(firewall: Loaded) -> None:
    firewall.rules({"id": "a", "sources": [HOST]})
    firewall.kernel.settle()
    firewall.delete("a")
    firewall.add(id="b", sources=[HOST], action="allow")
    assert behind(firewall) == {host(HOST)}
    assert firewall.judge(tcp(HOST)) == ALLOWED
    firewall.delete("b")
    firewall.kernel.settle()
    firewall.add(id="c", sources=[HOST])
    assert set(in_rows(firewall)) == {host(HOST)} and not behind(firewall)
    assert firewall.judge(tcp(HOST)) == DROPPED
    assert firewall.hits("c") == (1, SIZE)
    assert_exact(firewall)


def test_two_entries_of_one_row_are_both_judged_and_counted(firewall: Loaded) -> None:
    one, other = twins()
    firewall.rules({"id": "one", "sources": [one]})
    firewall.add(id="other", sources=[other], action="allow")
    assert set(in_rows(firewall)) == {host(one)} and behind(firewall) == {host(other)}
    assert [firewall.judge(tcp(each)) for each in (one, other, other)] == [DROPPED, ALLOWED, ALLOWED]
    assert firewall.hits("one") == (1, SIZE) and firewall.hits("other") == (2, 2 * SIZE)
    firewall.edit("other", action="drop")
    assert firewall.judge(tcp(other)) == DROPPED
    firewall.delete("one")
    assert [firewall.judge(tcp(each)) for each in (one, other)] == [PASSES, DROPPED]
    assert firewall.hits("other") == (4, 4 * SIZE)
    assert_exact(firewall)
    firewall.rules({"id": "both", "sources": [one, other]})  # in one write
    assert [firewall.judge(tcp(each)) for each in (one, other)] == [DROPPED, DROPPED]
    assert_exact(firewall)


def test_the_better_of_an_entry_in_the_front_and_one_behind_wins_and_counts(firewall: Loaded) -> None:
    for in_front, at_back in (("10.0.0.0/8", HOST), (HOST, "10.0.0.0/8")):
        for better in (in_front, at_back):
            firewall.rules()
            firewall.kernel.settle()
            firewall.add(id="behind", sources=[at_back], priority=7)
            firewall.delete("behind")  # its row is not free yet
            firewall.add(id="behind", sources=[at_back], priority=5)
            firewall.add(
                id="front", sources=[in_front], priority=4 if better == in_front else 6, action="allow"
            )
            assert len(in_rows(firewall)) == 1 and len(behind(firewall)) == 1
            winner = "front" if better == in_front else "behind"
            assert firewall.judge(tcp(HOST)) == (ALLOWED if winner == "front" else DROPPED)
            assert firewall.all_hits() == {winner: (1, SIZE)}
            assert_exact(firewall)


def test_a_batch_over_front_and_hash_map_happens_at_one_moment(firewall: Loaded) -> None:
    """Prefixes come into the front, leave it and come back behind it; one of them drops at every moment."""
    one, other = twins()  # of which but one stands in the front
    net = "10.7.0.0/16"
    sets: list[list[dict[str, Any]]] = [
        [{"sources": [one], "priority": 10}, {"sources": [other], "priority": 10, "action": "allow"}],
        [{"sources": [net], "priority": 20}, {"sources": [other], "priority": 30, "action": "allow"}],
        [{"sources": [one], "priority": 40}, {"sources": [net], "priority": 50, "action": "allow"}],
        [{"sources": [other, net], "priority": 60}],
    ]
    named = [[{**rule, "id": f"r{place}"} for place, rule in enumerate(rules)] for rules in sets]
    firewall.rules(*named[0])
    frame, program = tcp(one), firewall.program("ingress")
    assert firewall.judge(frame) == DROPPED
    was_in_front, was_behind = set(), set()
    with running(program, frame, repeat=5_000, rounds=3):
        for turn in range(120):
            firewall.rules(*named[(turn + 1) % len(named)])
            was_in_front |= set(in_rows(firewall))
            was_behind |= behind(firewall)
            if turn % 8 < 4:
                firewall.kernel.settle()
    seen = firewall.counted_since_last()
    assert {verdict for _, verdict, _ in seen} == {"drop"}, seen
    assert sum(packets for packets, _ in seen.values()) > 10_000
    assert host(one) in was_in_front and host(other) in was_behind
    assert_exact(firewall)


class Dies(BaseException):
    """The process ends here: nobody undoes anything."""


def die(*_: object) -> None:
    raise Dies


CHANGES: dict[str, Callable[[Loaded], None]] = {
    "edit": lambda firewall: firewall.edit("a", action="allow"),
    "delete": lambda firewall: firewall.delete("a"),
    "batch": lambda firewall: firewall.batch([{"id": "n", "sources": ["10.0.0.9"]}], ["a"]),
}


STEPS: dict[str, tuple[type, tuple[str, ...]]] = {
    "write": (Map, ("update_batch",)),
    "clear": (AddressRows, ("clear",)),
    "put": (AddressRows, ("put",)),
    "rewrite": (AddressRows, ("rewrite",)),
    "both ranks": (AddressRows, ("_change_now",)),
    "ranks one after the other": (AddressRows, ("_change_then",)),
    "delete": (Map, ("delete_batch",)),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_process_that_ends_while_an_entry_moves_leaves_the_rules_that_were_acknowledged(
    firewall: Loaded, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    firewall.rules({"id": "a", "sources": [HOST]}, {"id": "b", "sources": ["10.0.0.2", "10.0.0.0/28"]})
    before = [firewall.judge(tcp(f"10.0.0.{n}")) for n in (1, 2, 9, 99)]
    hits = firewall.all_hits()
    assert len(in_rows(firewall)) == 3
    owner, steps = STEPS[step]
    with monkeypatch.context() as patch:
        for each in steps:
            patch.setattr(owner, each, die)
        patch.setattr(KernelDatapath, "_take_back", lambda _: None)  # nobody is left to
        try:
            CHANGES[name](firewall)
        except Dies:
            is_cut_off = True
        else:
            is_cut_off = False
    if not is_cut_off:
        assert (name, step) not in {
            ("edit", "both ranks"),
            ("delete", "clear"),
            ("batch", "put"),
            ("batch", "ranks one after the other"),
        }
        return
    if name != "delete":
        assert [firewall.judge(tcp(f"10.0.0.{n}")) for n in (1, 2, 9, 99)] == before
        hits = firewall.all_hits()
    firewall.restart()
    assert_exact(firewall)
    if name != "delete":
        assert firewall.all_hits() == hits
    assert [firewall.judge(tcp(f"10.0.0.{n}")) for n in (1, 2, 9, 99)] == before
    CHANGES[name](firewall)
    assert_exact(firewall)


def test_a_start_finds_the_front_as_it_was(firewall: Loaded) -> None:
    firewall.rules({"id": "a", "sources": [HOST, "10.2.0.0/16"]})
    firewall.judge(tcp(HOST))
    programs, rows = firewall.program_ids(), set(in_rows(firewall))
    firewall.restart()
    assert firewall.program_ids() == programs, "compiled again"
    assert set(in_rows(firewall)) == rows and len(rows) == 2
    assert firewall.judge(tcp(HOST)) == DROPPED
    assert firewall.hits("a") == (2, 2 * SIZE)


def test_a_change_that_the_kernel_refuses_puts_nothing_into_the_front(
    firewall: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KernelRefused("the kernel said no")

    with monkeypatch.context() as patch:
        patch.setattr(Map, "update_batch", refuse)
        with pytest.raises(KernelRefused):
            firewall.batch([{"id": "a", "sources": [HOST]}, {"id": "b", "sources": ["2001:db8::1"]}], [])
    assert not in_rows(firewall)
    assert firewall.judge(tcp(HOST)) == PASSES
    assert_exact(firewall)


def look(loaded: Loaded) -> list[str]:
    return [each for _ in range(3) for each in loaded.kernel.audit(loaded.enforcer._ruleset.addresses)]


def empty(rows: np.ndarray) -> None:
    rows["key"] = 0


def other_rank(rows: np.ndarray) -> None:
    rows["entry"]["rank"][rows["key"] != 0] += 2


def elsewhere(rows: np.ndarray) -> None:
    """Every key in a row where no packet looks for it."""
    rows["key"] = np.roll(rows["key"], 1)


def nonsense(rows: np.ndarray) -> None:
    rows["key"][rows["key"] != 0] = 1 << 60


@pytest.mark.parametrize("edit", [empty, other_rank, elsewhere, nonsense], ids=lambda edit: edit.__name__)
def test_what_others_write_into_the_front_is_noticed_and_mended(
    firewall: Loaded, edit: Callable[[np.ndarray], None]
) -> None:
    firewall.rules({"id": "a", "sources": [HOST, "10.3.0.0/16"]})
    firewall.kernel.settle()
    assert look(firewall) == []
    edit(firewall.kernel._set.maps.arrays["address_front"])
    assert any("address4" in each for each in look(firewall))
    firewall.kernel.restore()
    firewall.kernel.reconcile(firewall.enforcer._image())
    assert look(firewall) == []
    assert firewall.judge(tcp(HOST)) == DROPPED
    assert_exact(firewall)


def test_an_entry_that_stands_in_two_places_stands_in_one_after_a_start(firewall: Loaded) -> None:
    firewall.rules({"id": "a", "sources": [HOST]})
    maps = firewall.kernel._set.maps
    ((keys, values),) = front_of(maps).dump()
    maps["address4"].update_batch(keys, values)
    firewall.restart()
    assert not behind(firewall) and set(in_rows(firewall)) == {host(HOST)}
    assert_exact(firewall)
