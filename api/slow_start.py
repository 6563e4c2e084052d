"""More time for a start that is slow, as long as it works (EXTEND_TIMEOUT_USEC=, sd_notify(3)).

Owns what counts as work: processor time of the thread that starts, and of its children (the compiler is one). On a
small or busy host compiling, verifying or filling maps with a million addresses may take longer than the unit's
TimeoutStartSec=; a start that only waits is still ended by it. Outside systemd nobody listens.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import get_ident, get_native_id
from typing import TypeVar

T = TypeVar("T")

LOOK_S = 5.0
MORE_S = 180  # from the last work that was seen
# The network waits for this service. Whoever works without an end must not hold it up for ever.
AT_MOST_S = 1800
# Between two looks. A thread that waits for a lock or for an answer of the kernel uses none.
LEAST_WORK_S = 0.001


class Work:
    """Processor time that a call takes in another thread, looked at from outside."""

    def __init__(self) -> None:
        self._clocks: Callable[[], list[int]] = list

    def of(self, call: Callable[[], T]) -> T:
        """Calls it in this thread."""
        own = time.pthread_getcpuclockid(get_ident())
        children = Path(f"/proc/self/task/{get_native_id()}/children")
        self._clocks = lambda: [own, *_clocks_of(children)]
        return call()

    def seconds(self) -> float:
        """Only goes up while the thread lives, but for a moment when a child ends."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = ended.ru_utime + ended.ru_stime
        for clock in self._clocks():
            with suppress(OSError):  # the thread, or the child, has ended
                seconds += time.clock_gettime(clock)
        return seconds


def _clocks_of(children: Path) -> list[int]:
    """Of the processor time of processes (clock_getcpuclockid(3)). None where the kernel was built without that file:
    their time counts when they have ended."""
    try:
        return [~int(process) << 3 | 2 for process in children.read_text(encoding="ascii").split()]
    except OSError:
        return []


async def ask_for_time(
    work: Work,
    notify: Callable[[str], None],
    look_s: float = LOOK_S,
    at_most_s: float = AT_MOST_S,
) -> None:
    """Until it is cancelled, or for `at_most_s`."""
    ends, seen = time.monotonic() + at_most_s, work.seconds()
    while time.monotonic() < ends:
        await asyncio.sleep(look_s)
        done = work.seconds()
        if done - seen >= LEAST_WORK_S:
            notify(f"EXTEND_TIMEOUT_USEC={MORE_S * 1_000_000}")
            seen = done
