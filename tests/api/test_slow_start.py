"""A start that works is given more time by systemd, one that only waits is not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from api.slow_start import LEAST_WORK_S, MORE_S, Work, ask_for_time

LOOKS_S = 0.05
MESSAGE = f"EXTEND_TIMEOUT_USEC={MORE_S * 1_000_000}"
PATIENCE_S = 20.0
BUSY = "import time\nwhile time.process_time() < 0.1: pass"


class Asked:
    """What was asked for while something started."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, message: str) -> None:
        self.messages.append(message)

    def while_it(self, starts: Callable[[], None], at_most_s: float = 60.0) -> list[str]:
        async def live() -> None:
            work = Work()
            asking = asyncio.create_task(ask_for_time(work, self, LOOKS_S, at_most_s))
            await asyncio.to_thread(work.of, starts)
            asking.cancel()

        asyncio.run(live())
        return self.messages


def work_for(seconds: float) -> None:
    """Of this thread's processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_who_works_is_given_more_time_again_and_again() -> None:
    asked = Asked()

    def work_until_asked_three_times() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(asked.messages) < 3 and time.monotonic() < deadline:
            work_for(0.01)

    assert asked.while_it(work_until_asked_three_times)[:3] == [MESSAGE] * 3


def test_who_waits_is_not() -> None:
    assert Asked().while_it(lambda: time.sleep(LOOKS_S * 10)) == []


def test_the_work_of_the_loop_and_of_other_threads_does_not_count() -> None:
    """Another thread does not make a start that hangs look alive."""
    ended = threading.Event()

    def work_beside() -> None:
        while not ended.is_set():
            work_for(0.01)

    beside = threading.Thread(target=work_beside)
    beside.start()
    try:
        assert Asked().while_it(lambda: time.sleep(LOOKS_S * 10)) == []
    finally:
        ended.set()
        beside.join()


def test_the_work_of_a_compiler_counts_while_it_runs() -> None:
    asked = Asked()

    def compile_until_asked_three_times() -> None:
        with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as compiler:
            before, deadline = time.thread_time(), time.monotonic() + PATIENCE_S
            while len(asked.messages) < 3 and time.monotonic() < deadline:
                time.sleep(LOOKS_S)
            compiler.kill()
            assert time.thread_time() - before < 3 * LEAST_WORK_S  # what was seen was the child's

    assert len(asked.while_it(compile_until_asked_three_times)) >= 3


def test_it_counts_once_when_it_has_ended() -> None:
    work = Work()
    before = work.seconds()
    work.of(lambda: subprocess.run([sys.executable, "-S", "-c", BUSY], check=True))
    first, own = work.seconds() - before, time.thread_time()
    assert first >= 0.1 + own
    assert work.seconds() - before < first + 0.1


def test_nobody_is_given_time_for_ever() -> None:
    """The network waits for the service."""
    assert len(Asked().while_it(lambda: work_for(LOOKS_S * 10), at_most_s=LOOKS_S * 2)) <= 2
