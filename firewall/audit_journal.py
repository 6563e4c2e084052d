"""The audit in the log: a line a change, some moments after it is durable, so that no change waits for the log.

Owns when that is. Changes of one moment that are alike share a line, which names or counts them; the table has each.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import orjson
import structlog

from firewall.audit_entry import ACCESS, AuditEntry, Origin

DELAY_S = 0.2
_NAMED = 20  # targets in a line

log = structlog.get_logger()


class AuditJournal:
    """Every method may be called from any thread."""

    def __init__(self, delay_s: float = DELAY_S) -> None:
        self._delay_s = delay_s
        self._lock, self._telling = threading.Lock(), threading.Lock()
        self._waiting: list[tuple[int, AuditEntry]] = []

    def add(self, entries: Sequence[tuple[int, AuditEntry]]) -> None:
        """With their ids."""
        if not entries:
            return
        with self._lock:
            is_first = not self._waiting
            self._waiting += entries
        if is_first:
            timer = threading.Timer(self._delay_s, self.flush)
            timer.daemon = True
            timer.start()

    def flush(self) -> None:
        """All that was added before is told when it returns."""
        with self._telling:
            with self._lock:
                entries, self._waiting = self._waiting, []
            tell(entries)


def who(origin: Origin) -> dict[str, str]:
    found = {"actor": origin.actor, "source": origin.source, "reason": origin.reason}
    return {name: value for name, value in found.items() if value}


def tell(entries: Sequence[tuple[int, AuditEntry]]) -> None:
    alike: dict[tuple[str, ...], list[tuple[int, AuditEntry]]] = {}
    for number, entry in entries:
        by = entry.origin
        own = () if entry.summary is None else (str(number),)
        key = (entry.kind, entry.action, by.actor, by.source, by.reason, *own)
        alike.setdefault(key, []).append((number, entry))
    for (kind, action, *_), these in alike.items():
        (first, entry), (last, _) = these[0], these[-1]
        targets = [each.target for _, each in these if each.target]
        fields: dict[str, object] = {"audit": first if first == last else f"{first}-{last}"}
        if targets:
            more = f" and {len(targets) - _NAMED} more" if len(targets) > _NAMED else ""
            fields["target"] = ", ".join(targets[:_NAMED]) + more
        fields |= who(entry.origin)
        if len(these) == 1 and entry.origin.request_id:
            fields["request"] = entry.origin.request_id
        if entry.summary is not None:
            fields |= {f"{name}": value for name, value in orjson.loads(entry.summary).items()}
        (log.warning if kind == ACCESS else log.info)(action, **fields)
