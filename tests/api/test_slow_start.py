"""A start that works is given more time by systemd, one that only waits is not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from api.slow_start import LEAST_WORK_S, MORE_S, SlowStart

LOOKS_S = 0.05
MESSAGE = f"EXTEND_TIMEOUT_USEC={MORE_S * 1_000_000}"
PATIENCE_S = 60.0
BUSY = "while True: pass"


def asked(starts: Callable[[list[str]], None], at_most_s: float = PATIENCE_S) -> list[str]:
    """What systemd was told while it started."""
    told: list[str] = []
    with SlowStart(told.append, LOOKS_S, at_most_s):
        starts(told)
    return told


def work_for(seconds: float) -> None:
    """Of this thread's processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def until(condition: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        meanwhile()


def test_who_works_is_given_more_time_again_and_again() -> None:
    told = asked(lambda told: until(lambda: len(told) >= 3, lambda: work_for(0.01)))
    assert set(told) == {MESSAGE}


def test_who_waits_is_not() -> None:
    assert asked(lambda _: time.sleep(LOOKS_S * 10)) == []


def test_from_then_on_the_work_of_the_thread_counts_that_starts() -> None:
    """The loop, which answers requests meanwhile, does not."""
    told: list[str] = []
    with SlowStart(told.append, LOOKS_S) as start:
        starting = threading.Thread(target=start.of, args=(lambda: time.sleep(LOOKS_S * 20),))
        starting.start()
        until(lambda: not starting.is_alive(), lambda: work_for(0.01))
        assert len(told) <= 1  # of what this thread did before the other began
        starting = threading.Thread(
            target=start.of, args=(lambda: until(lambda: len(told) >= 4, lambda: work_for(0.01)),)
        )
        starting.start()
        starting.join()
    assert set(told) == {MESSAGE}


def test_the_work_of_other_threads_does_not_count() -> None:
    """It does not make a start that hangs look alive."""
    ended = threading.Event()
    beside = threading.Thread(target=lambda: until(ended.is_set, lambda: work_for(0.01)))
    beside.start()
    try:
        assert asked(lambda _: time.sleep(LOOKS_S * 10)) == []
    finally:
        ended.set()
        beside.join()


def test_the_work_of_a_compiler_counts_while_it_runs() -> None:
    def compile_until_told_three_times(told: list[str]) -> None:
        with subprocess.Popen([sys.executable, "-S", "-c", BUSY]) as compiler:
            try:
                before = time.thread_time()
                until(lambda: len(told) >= 3, lambda: time.sleep(LOOKS_S))
                assert time.thread_time() - before < 3 * LEAST_WORK_S  # what was seen was the child's
            finally:
                compiler.kill()

    asked(compile_until_told_three_times)


def test_nobody_is_given_time_for_ever() -> None:
    """The network waits for the service."""
    assert len(asked(lambda _: work_for(LOOKS_S * 10), at_most_s=LOOKS_S * 2)) <= 2


def test_a_start_that_has_ended_asks_no_more() -> None:
    told: list[str] = []
    start = SlowStart(told.append, LOOKS_S)
    with pytest.raises(ValueError), start:
        raise ValueError
    work_for(LOOKS_S * 4)
    assert told == [] and "slow start" not in [each.name for each in threading.enumerate()]
