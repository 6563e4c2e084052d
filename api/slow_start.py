"""More time for a start that is slow, as long as it works (EXTEND_TIMEOUT_USEC=, sd_notify(3)).

Owns what counts as work: processor time of the thread that starts, and of its children (the compiler is one). On a
small or busy host loading the code, compiling, verifying or filling maps with a million addresses may take longer than
the unit's TimeoutStartSec=; a start that only waits is still ended by it. Outside systemd nobody listens. Imported
before all that takes long, so it must not import such things itself.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread, get_ident, get_native_id
from types import TracebackType
from typing import TypeVar

from api.systemd import notify

T = TypeVar("T")

LOOK_S = 5.0
MORE_S = 180  # from the last work that was seen
# The network waits for this service. Whoever works without an end must not hold it up for ever.
AT_MOST_S = 1800
# Between two looks. A thread that waits for a lock or for an answer of the kernel uses none.
LEAST_WORK_S = 0.001


class SlowStart:
    """Asks from where it is entered until end(). What counts is the work of the thread that makes it, and from of() on
    that of the thread which calls that."""

    def __init__(
        self, tell: Callable[[str], None] = notify, look_s: float = LOOK_S, at_most_s: float = AT_MOST_S
    ) -> None:
        self._tell = tell
        self._look_s = look_s
        self._ends = time.monotonic() + at_most_s
        self._ended = Event()
        self._work = _Work(0.0)

    def __enter__(self) -> SlowStart:
        Thread(target=self._look, name="slow start", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def of(self, call: Callable[[], T]) -> T:
        self._work = _Work(self._work.own())
        return call()

    def end(self) -> None:
        self._ended.set()

    def _look(self) -> None:
        seen = self._work.seconds()
        while not self._ended.wait(self._look_s) and time.monotonic() < self._ends:
            done = self._work.seconds()
            if done - seen >= LEAST_WORK_S:
                self._tell(f"EXTEND_TIMEOUT_USEC={MORE_S * 1_000_000}")
                seen = done


class _Work:
    """Processor time of the thread that makes it, from `before` on, and of children, looked at from outside."""

    def __init__(self, before: float) -> None:
        self._clock = time.pthread_getcpuclockid(get_ident())
        self._children = Path(f"/proc/self/task/{get_native_id()}/children")
        self._before = before - time.clock_gettime(self._clock)

    def own(self) -> float:
        with suppress(OSError):  # the thread has ended
            return self._before + time.clock_gettime(self._clock)
        return 0.0

    def seconds(self) -> float:
        """Only goes up while the thread lives, but for a moment when a child ends."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + sum(self._of_children()) + self.own()

    def _of_children(self) -> list[float]:
        """None where the kernel was built without that file: their time counts when they have ended."""
        found: list[float] = []
        with suppress(OSError):
            for process in self._children.read_text(encoding="ascii").split():
                with suppress(OSError):  # it has ended
                    found.append(time.clock_gettime(~int(process) << 3 | 2))  # clock_getcpuclockid(3)
        return found
