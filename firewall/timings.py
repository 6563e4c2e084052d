"""How long something took, each time: counts by duration.

Owns the bounds. Knows nothing of what is timed and of who reads it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Seconds. From a commit on fast flash to an import of a million addresses.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


@dataclass(frozen=True, slots=True)
class Timing:
    """`counts`: how often up to each of BOUNDS and not up to the one before, then how often beyond all."""

    counts: tuple[int, ...]
    total_s: float


class Timings:
    """Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total_s = 0.0

    def add(self, seconds: float) -> None:
        with self._lock:
            self._counts[bisect_left(BOUNDS, seconds)] += 1
            self._total_s += seconds

    def read(self) -> Timing:
        with self._lock:
            return Timing(tuple(self._counts), self._total_s)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Also of what ends by an error."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)
