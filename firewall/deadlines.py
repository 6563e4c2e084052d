"""When the next change runs out that waits for its confirmation, or panic, read from outside the service.

Owns one question to the database. Imports next to nothing: who asks it waits for long, and should be small.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path


def next_due(database: Path, boot: str) -> float | None:
    """By the clock of this boot that only goes forward; None where nothing waits. What waits since another boot is
    due already: 0. Raises sqlite3.Error where the database cannot be read."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)
    try:
        row = connection.execute(
            "SELECT min(CASE boot WHEN ? THEN due ELSE 0 END) FROM changes WHERE state = 'pending'", (boot,)
        ).fetchone()
        panic = connection.execute(
            "SELECT json_extract(value, '$.since') + json_extract(value, '$.ttl_s') FROM meta WHERE key = 'panic'"
        ).fetchone()
    finally:
        connection.close()
    due = [] if row[0] is None else [float(row[0])]
    if panic is not None and panic[0] is not None:
        due.append(time.monotonic() + float(panic[0]) - time.time())
    return min(due, default=None)
