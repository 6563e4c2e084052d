"""Dropped packets into the service's log, so many a second; of the others only how many they were.

Owns a listener and the thread that writes: the journal may be slow, and only these lines wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from firewall.listener import Listener, Taken, Wanted
from firewall.report import Report
from firewall.reporting import Reporting

log = structlog.get_logger()

_MOST_AT_ONCE = 256
_SECOND_S = 1.0


class DropLog:
    """follow() starts and stops it, as the settings say."""

    def __init__(self, reporting: Reporting, clock: Callable[[], float] = time.monotonic) -> None:
        self._reporting = reporting
        self._clock = clock
        self._there_is = threading.Event()
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._since = clock()
        self._written = self._not_written = 0

    def follow(self) -> None:
        """What the limits say now. Raises FirewallError where there are too many listeners."""
        if self._reporting.limits.log_drops and self._listener is None:
            self._listener = self._reporting.listen(Wanted(), self._there_is.set)
            self._thread = threading.Thread(
                target=self._write, args=(self._listener,), name="drops", daemon=True
            )
            self._thread.start()
        elif not self._reporting.limits.log_drops:
            self.close()

    def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None and self._thread is not None:
            self._reporting.leave(listener)
            listener.end()
            self._thread.join()

    def _write(self, listener: Listener) -> None:
        while True:
            self._there_is.wait(_SECOND_S)
            self._there_is.clear()
            taken = listener.take(_MOST_AT_ONCE)
            self.write(taken)
            if taken.is_over:
                self._tell_rest()
                return

    def write(self, taken: Taken) -> None:
        """Lines for as many as the second has room for."""
        if self._clock() - self._since >= _SECOND_S:
            self._tell_rest()
        room = max(0, self._reporting.limits.log_rate - self._written)
        for report in taken.reports[:room]:
            log.info("dropped", **_fields(report))
        self._written += min(room, len(taken.reports))
        self._not_written += max(0, len(taken.reports) - room) + taken.lost + taken.suppressed

    def _tell_rest(self) -> None:
        """At the end of a second in which there were too many."""
        if self._not_written:
            log.info("dropped more", suppressed=self._not_written)
        self._since, self._written, self._not_written = self._clock(), 0, 0


def _fields(report: Report) -> dict[str, object]:
    """Without what is not there, the log has a time of its own."""
    fields = report.fields()
    return {
        name: value for name, value in fields.items() if value is not None and name not in ("time", "verdict")
    }
