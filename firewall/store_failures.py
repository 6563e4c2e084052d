"""What the database refuses, as the error that an operator gets.

Owns that translation, for all who read or write tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from firewall.errors import StoreFailed


@contextmanager
def failures(action: str, hint: str = "check the disk and the state directory") -> Iterator[None]:
    """Around statements; `action` in words. Raises StoreFailed."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreFailed(f"{action} failed: {error}", hint) from error
