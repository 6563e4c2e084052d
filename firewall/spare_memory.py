"""Memory that is free but still the process's: the C library keeps what a large change needed, for a next one.

Owns giving it back to the system when there is much of it.
"""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

_MUCH = 32 << 20
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


def _give_back() -> None:
    """malloc_trim(3), which only glibc has."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
