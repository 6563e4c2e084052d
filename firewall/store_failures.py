"""What the database refuses, as the error that an operator gets.

Owns that translation, for all who read or write tables.
"""

from __future__ import annotations

import sqlite3
from types import TracebackType

from firewall.errors import StoreFailed


class Failures:
    """Around statements; `action` in words. Raises StoreFailed. (A class: it stands around each statement, and a
    generator costs as much as a short one.)"""

    __slots__ = ("_action", "_hint")

    def __init__(self, action: str, hint: str = "check the disk and the state directory") -> None:
        self._action = action
        self._hint = hint

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error):
            raise StoreFailed(f"{self._action} failed: {error}", self._hint) from error
