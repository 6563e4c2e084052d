"""The audit for those outside: reading it, and entering what happened beside the rules.

Owns these entries' transactions. Those of changes are the changes' own (firewall/audited.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import orjson

from firewall.audit_entry import ACCESS, AuditEntry, Origin
from firewall.audit_log import AuditQuery
from firewall.commit import Commits


class Denied(NamedTuple):
    """Accesses that were denied: by whom (as far as is known), why, how often, when for the first time."""

    origin: Origin
    code: str
    times: int
    first: float


class AuditEntries(Commits):
    """Every method may be called from any thread."""

    def audit(self, query: AuditQuery, limit: int) -> list[AuditEntry]:
        """The newest first."""
        return self._audit_log.page(query, limit)

    def enter(self, action: str, target: str = "", /, **summary: object) -> None:
        with self._entering():
            self._audit(action, target, **summary)

    def enter_denied(self, denied: Sequence[Denied]) -> None:
        with self._entering():
            for each in denied:
                summary = orjson.dumps({"times": each.times}).decode()
                entry = AuditEntry(
                    0, each.first, ACCESS, each.origin, "access.denied", each.code, None, None, summary
                )
                self._enter(entry)

    @contextmanager
    def _entering(self) -> Iterator[None]:
        """Also while maps and store may differ."""
        with self._lock:
            self._close_group()
            with self._store.transaction():
                yield
