"""More time for a start that is slow, as long as it works (EXTEND_TIMEOUT_USEC=, sd_notify(3)).

Owns what counts as work: processor time of the thread that starts, and of children that have ended (the compiler is
one). On a small or busy host compiling, verifying or filling maps with a million addresses may take longer than the
unit's TimeoutStartSec=; a start that only waits is still ended by it. Outside systemd nobody listens.
"""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

LOOK_S = 5.0
# From the last work that was seen. The compiler's is seen when it has ended: longer than loader.TIMEOUT_S.
MORE_S = 180
# The network waits for this service. Whoever works without an end must not hold it up for ever.
AT_MOST_S = 1800
# Between two looks. A thread that waits for a lock or for an answer of the kernel uses none.
LEAST_WORK_S = 0.001


class Work:
    """Processor time that a call takes in another thread, looked at from outside."""

    def __init__(self) -> None:
        self._clock: int | None = None

    def of(self, call: Callable[[], T]) -> T:
        """Calls it in this thread."""
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        return call()

    def seconds(self) -> float:
        """Only goes up while the thread lives."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = children.ru_utime + children.ru_stime
        if self._clock is not None:
            with suppress(OSError):  # the thread has ended
                seconds += time.clock_gettime(self._clock)
        return seconds


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
