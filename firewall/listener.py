"""One who listens to reports: what it wants to hear, and a place where reports wait until it takes them.

Owns losing the reports that a slow reader leaves no room for, and counting them. Whoever offers never waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from firewall.address import BITS, Prefix
from firewall.report import CAPTURE, EVENTS, NotSent, Report


@dataclass(frozen=True)
class Wanted:
    """Which packets, None where all. `is_all`: those that pass too, of a capture; `snap_length`: bytes of each, 0 for
    none, which makes it a listener to events."""

    rule: str | None = None
    address: Prefix | None = None
    interface: str | None = None
    reason: str | None = None
    hook: str | None = None
    is_all: bool = False
    snap_length: int = 0

    @property
    def stream(self) -> int:
        return CAPTURE if self.snap_length else EVENTS

    def fits(self, report: Report) -> bool:
        return (
            bool(report.streams & 1 << self.stream)
            and (self.is_all or report.verdict == "drop" or report.kind != "judged")
            and (self.rule is None or report.rule == self.rule)
            and (self.reason is None or report.reason == self.reason)
            and (self.hook is None or report.hook == self.hook)
            and (self.interface is None or fnmatchcase(report.interface, self.interface))
            and (self.address is None or _is_of(report, self.address))
        )


def _is_of(report: Report, prefix: Prefix) -> bool:
    return _is_in(report.source, prefix) or _is_in(report.destination, prefix)


def _is_in(address: bytes, prefix: Prefix) -> bool:
    if len(address) * 8 != BITS[prefix.version]:
        return False
    return (int.from_bytes(address, "big") ^ prefix.address) >> (BITS[prefix.version] - prefix.length) == 0


class Taken(NamedTuple):
    """`lost`: to this reader, for it was slow or the ring was full; `suppressed`: by the limit of the kernel's reports,
    whether or not they were wanted. Both since the last time. `is_over`: nothing more will come."""

    reports: Sequence[Report]
    lost: int
    suppressed: int
    is_over: bool


class Listener:
    """Offered to by one thread, taken from by another. `notify` is called when there is something to take, by the
    thread that offers, and must not wait."""

    def __init__(self, wanted: Wanted, room: int, notify: Callable[[], None], not_sent: NotSent) -> None:
        """`room`: how many reports wait at most; `not_sent`: the kernel's counts of its stream, now."""
        self.wanted = wanted
        self._not_sent = not_sent
        self._room = room
        self._notify = notify
        self._lock = threading.Lock()
        self._waiting: deque[Report] = deque()
        self._lost = self._suppressed = 0
        self._is_over = False

    def offer(self, reports: Sequence[Report]) -> int:
        """Those that are wanted; answers how many of them found no room."""
        mine = [each for each in reports if self.wanted.fits(each)]
        if not mine:
            return 0
        with self._lock:
            there = max(0, self._room - len(self._waiting))
            self._waiting.extend(mine[:there])
            lost = len(mine) - min(there, len(mine))
            self._lost += lost
        self._notify()
        return lost

    def missed(self, now: NotSent) -> None:
        """The kernel's counts of its stream: of all that it had to tell, not of this listener's part."""
        before, self._not_sent = self._not_sent, now
        if now == before:
            return
        with self._lock:
            self._lost += now.lost - before.lost
            self._suppressed += now.suppressed - before.suppressed
        self._notify()

    def take(self, most: int) -> Taken:
        with self._lock:
            reports = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            taken = Taken(reports, self._lost, self._suppressed, self._is_over and not self._waiting)
            self._lost = self._suppressed = 0
            if self._waiting:
                self._notify()
        return taken

    def end(self) -> None:
        with self._lock:
            self._is_over = True
        self._notify()
