"""What clients do wrong, told to the log: the first of a kind at once, those that follow as a number.

Owns that a client that fails by the thousand a second makes no more lines than one that fails now and then: they would
push out of the journal what matters there, or make it refuse all of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

BETWEEN_S = 10.0  # lines of a kind

log = structlog.get_logger(__name__)


class Complaints:
    """flush() is called now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at: dict[str, float] = {}
        self._unsaid: dict[str, tuple[int, dict[str, object]]] = {}

    def say(self, what: str, **fields: object) -> None:
        """`what`: one of few texts. `fields`: of those that share a line, the last one's are told."""
        times = self._unsaid.get(what, (0, {}))[0] + 1
        self._unsaid[what] = times, fields
        self._say_if_due(what)

    def flush(self) -> None:
        for what in list(self._unsaid):
            self._say_if_due(what)

    def _say_if_due(self, what: str) -> None:
        now = self._clock()
        if now - self._said_at.get(what, -BETWEEN_S) < BETWEEN_S:
            return
        self._said_at[what] = now
        times, fields = self._unsaid.pop(what)
        log.warning(what, **fields, **({"times": times} if times > 1 else {}))
