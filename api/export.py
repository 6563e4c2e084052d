"""Exports: answers of any length that show one moment.

Owns how long one may take. As long as it is read the database keeps that moment, and its log grows by all changes: a
client that reads a little now and then must not fill the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

LONGEST_S = 600.0


class ExportEnded(Exception):
    """What was sent is not whole, and the client must see that: the connection ends before the answer does."""


def bounded(
    parts: Iterable[bytes], longest_s: float = LONGEST_S, clock: Callable[[], float] = time.monotonic
) -> Iterator[bytes]:
    """Raises ExportEnded."""
    ends_at = clock() + longest_s
    for part in parts:
        if clock() > ends_at:
            raise ExportEnded
        yield part
