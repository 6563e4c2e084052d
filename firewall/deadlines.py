"""When the next change runs out that waits for its confirmation, read from outside the service.

Owns one question to the database. Imports next to nothing: who asks it waits for long, and should be small.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path


def next_due(database: Path, boot: str) -> float | None:
    """By the clock of this boot that only goes forward; None where nothing waits. What waits since another boot is
    due already: 0. Raises sqlite3.Error where the database cannot be read."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)
    try:
        row = connection.execute(
            "SELECT min(CASE boot WHEN ? THEN due ELSE 0 END) FROM changes WHERE state = 'pending'", (boot,)
        ).fetchone()
    finally:
        connection.close()
    return None if row[0] is None else float(row[0])
