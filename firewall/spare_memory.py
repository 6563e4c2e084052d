"""Memory that is free but still the process's: the C library keeps what a large change needed, for a next one.

Owns giving it back to the system when there is much of it, and that what is large is not kept at all.
"""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

_MUCH = 16 << 20
_LARGE = 2 << 20
_M_MMAP_THRESHOLD = -3  # malloc.h
_STATM = Path("/proc/self/statm")


class SpareMemory:
    """`look()` now and then, from a thread that may wait some tens of milliseconds."""

    def __init__(self) -> None:
        self._known = resident()

    def look(self) -> bool:
        """Whether it looked for spare memory: the process had grown."""
        present = resident()
        has_grown = present > self._known + _MUCH
        if has_grown:
            _give_back()
            present = resident()
        self._known = present if has_grown else min(self._known, present)
        return has_grown


def resident() -> int:
    """Bytes of the process that are in memory; 0 where nobody tells."""
    with suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return 0


def keep_nothing_large() -> None:
    """From now on memory of two megabytes and more goes back to the system when it is freed. Else the C library, once
    it has seen such a piece freed, takes pieces of up to 32 MB from its heap, where they leave holes: of columns of a
    million rows that was a sixth of all memory. mallopt(3), which not every C library has."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _give_back() -> None:
    """malloc_trim(3), which only glibc has."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
