"""The grace period: no program that ran before it is left after it, whichever way was there first."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from firewall.kernel import bpf, grace
from firewall.kernel.bpf import Map
from firewall.kernel.grace import GracePeriod
from tests.datapath.flood import running

ARRAY, MMAPABLE, XDP = 2, 1 << 10, 6
PATIENCE_S = 60
TURNS = 100_000  # of the program's loop: some 50 microseconds
RUNS = np.dtype([("begun", "<u8"), ("ended", "<u8")])


@pytest.fixture
def period() -> Iterator[GracePeriod]:
    made = GracePeriod()
    yield made
    made.close()


class Never:
    """A way that does not come to its end before the test does."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def __call__(self, *_: object) -> None:
        assert self.is_over.wait(30)


def refused(*_: object) -> None:
    raise OSError(22, "refused")


def instruction(code: int, registers: int, offset: int, number: int) -> bytes:
    return struct.pack("=BBhi", code, registers, offset, number)


def slow_program(runs: Map) -> int:
    """Counts that it began, turns for a while, counts that it ended."""

    def count(place: int) -> list[tuple[int, int, int, int]]:
        return [(0x79, 0x12, place, 0), (0x07, 0x02, 0, 1), (0x7B, 0x21, place, 0)]  # by way of r2

    turn = [(0xB7, 0x03, 0, 0), (0x07, 0x03, 0, 1), (0xA5, 0x03, -2, TURNS)]  # r3 from 1 to TURNS
    value = [(0x18, 0x21, 0, runs.fd), (0, 0, 0, 0)]  # r1 points to it
    drop = [(0xB7, 0x00, 0, 1), (0x95, 0, 0, 0)]
    code = b"".join(instruction(*each) for each in (*value, *count(0), *turn, *count(8), *drop))
    buffer, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQ", XDP, len(code) // 8, ctypes.addressof(buffer), ctypes.addressof(licence), 0, 0, 0
    )
    return bpf.call(bpf.PROG_LOAD, attr, "loading a slow program")[0]


@pytest.mark.parametrize("way", ["both", "visits", "kernel"])
def test_no_program_that_ran_before_is_left(
    period: GracePeriod, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = Never()
    if way != "both":
        monkeypatch.setattr(GracePeriod, "_visit" if way == "kernel" else "_wait", never)
    attr = struct.pack("=IIIII", ARRAY, 4, RUNS.itemsize, 1, MMAPABLE)
    table = Map(bpf.call(bpf.MAP_CREATE, attr, "creating a map")[0])
    program, runs = slow_program(table), table.mapped(RUNS)
    try:
        for cpu in os.sched_getaffinity(0):
            amidst, until = 0, time.monotonic() + PATIENCE_S
            with running(program, bytes(64), repeat=2000, cpu=cpu):  # 0.1 s without Python's lock
                while amidst < (10 if way == "kernel" else 50):
                    assert time.monotonic() < until, f"{amidst} grace periods began while a program ran"
                    before, ended = int(runs["begun"][0]), int(runs["ended"][0])
                    amidst += before > ended
                    period.wait()
                    assert int(runs["ended"][0]) >= before
    finally:
        never.is_over.set()
        os.close(program)


def test_where_a_cpu_cannot_be_visited_the_kernel_says_when(
    period: GracePeriod, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = threading.Event()
    monkeypatch.setattr(grace, "_run_on", refused)
    monkeypatch.setattr(GracePeriod, "_wait", lambda _: waited.set())
    period.begin()
    period.finish()
    assert waited.is_set()


def test_a_cpu_that_is_not_for_us_is_not_passed_over(
    period: GracePeriod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    other = cpus[-1] + 3
    (tmp_path / "present").write_text(f"0-{cpus[-1]},{other}\n")
    for cpu in {*range(cpus[-1] + 1), other}:
        (tmp_path / f"cpu{cpu}").mkdir()
        (tmp_path / f"cpu{cpu}/online").write_text("1\n")
    monkeypatch.setattr(grace, "_CPUS", tmp_path)
    with pytest.raises(OSError, match="not all CPUs"):
        period._visit()
    (tmp_path / f"cpu{other}/online").write_text("0\n")
    period._visit()
    (tmp_path / f"cpu{other}/online").unlink()
    with pytest.raises(FileNotFoundError):
        period._visit()


def test_more_cpus_than_are_worth_it_are_not_visited(
    period: GracePeriod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grace, "_MOST_VISITED", len(os.sched_getaffinity(0)) - 1)
    with pytest.raises(OSError, match="more than"):
        period._visit()


def test_a_visit_leaves_the_thread_where_it_may_run(period: GracePeriod) -> None:
    allowed = os.sched_getaffinity(0)
    period._visit()
    assert os.sched_getaffinity(0) == allowed


def test_whoever_may_not_visit_tries_it_once(period: GracePeriod, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def forbidden(cpus: set[int]) -> None:
        tried.append(cpus)
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(grace, "_run_on", forbidden)
    for _ in range(3):
        period.wait()
    assert 1 <= len(tried) <= 2  # and once more to go back


def test_a_kernel_with_preemptible_bottom_halves_is_asked_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not grace.is_realtime()
    monkeypatch.setattr(grace, "_REALTIME", tmp_path)
    assert grace.is_realtime()
    monkeypatch.setattr(GracePeriod, "_visit", refused)
    period = GracePeriod()
    assert len(period._started()) == 1
    period.wait()
    period.close()


def test_a_grace_period_that_no_way_sees_end_is_an_error(
    period: GracePeriod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GracePeriod, "_wait", refused)
    monkeypatch.setattr(GracePeriod, "_visit", refused)
    period.begin()
    with pytest.raises(OSError, match="refused"):
        period.finish()
    assert not period.has_passed


def test_has_passed_says_whether_finish_would_wait(
    period: GracePeriod, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, visit = Never(), Never()
    monkeypatch.setattr(GracePeriod, "_wait", kernel)
    monkeypatch.setattr(GracePeriod, "_visit", visit)
    assert not period.has_passed
    period.begin()
    assert not period.has_passed
    visit.is_over.set()
    period.finish()
    assert not period.has_passed  # it is over and done with
    period.begin()
    period._begun[1].result(10)
    assert period.has_passed
    kernel.is_over.set()
    period.finish()
