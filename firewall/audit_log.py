"""The audit: a table that only grows at its end, and loses the oldest entries beyond what is kept.

Owns that table. An entry is written in the transaction of its change, so both are durable or neither is. The database
refuses to change an entry, and to delete one that is still kept (firewall/schema.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from firewall.audit_entry import AuditEntry, Origin
from firewall.store import Store
from firewall.store_failures import Failures

_COLUMNS = "at, kind, actor, source, request_id, call, reason, action, target, before, after, summary"
_INSERT = f"INSERT INTO audit ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
TRIM_CHUNK = 2000


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Filters, None where not asked: times are seconds since 1970; `before`: entries with smaller ids. `action` also
    means those below it: `rule` is `rule.add` too."""

    kind: str | None = None
    actor: str | None = None
    action: str | None = None
    target: str | None = None
    request_id: str | None = None
    since: float | None = None
    until: float | None = None
    before: int | None = None


class AuditLog:
    """What writes is called inside a transaction of the store, by the thread that began it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(self, entry: AuditEntry) -> int:
        """Its id; the entry's own is not looked at."""
        by = entry.origin
        row = (
            entry.at, entry.kind, by.actor, by.source, by.request_id, by.call, by.reason,
            entry.action, entry.target, entry.before, entry.after, entry.summary,
        )  # fmt: skip
        with Failures("writing the audit"):
            number = self._store.connection.execute(_INSERT, row).lastrowid
        assert number is not None
        return number

    def page(self, query: AuditQuery, limit: int) -> list[AuditEntry]:
        """The newest first."""
        clauses, parameters = _conditions(query)
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
        with Failures("reading the audit"):
            rows = self._store.connection.execute(
                f"SELECT id, {_COLUMNS} FROM audit {where} ORDER BY id DESC LIMIT ?", [*parameters, limit]
            ).fetchall()
        return [_entry(row) for row in rows]

    def excess(self, kind: str, keep: int) -> int | None:
        """The id up to which entries of a kind are too old to be kept; None where there are none such."""
        query = "SELECT id FROM audit WHERE kind = ? ORDER BY id DESC LIMIT 1 OFFSET ?"
        with Failures("reading the audit"):
            row = self._store.connection.execute(query, (kind, keep)).fetchone()
        return None if row is None else int(row[0])

    def trim(self, kind: str, up_to: int) -> int:
        """Deletes the oldest of a kind, not all at once; how many."""
        connection = self._store.connection
        with Failures("trimming the audit"):
            ids = connection.execute(
                "SELECT id FROM audit WHERE kind = ? AND id <= ? ORDER BY id LIMIT ?",
                (kind, up_to, TRIM_CHUNK),
            ).fetchall()
            if ids:
                floor = (f"audit_floor_{kind}", ids[-1][0])
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", floor)
                connection.executemany("DELETE FROM audit WHERE id = ?", ids)
        return len(ids)


def _conditions(query: AuditQuery) -> tuple[list[str], list[object]]:
    clauses: list[str] = []
    parameters: list[object] = []
    for clause, value in (
        ("id < ?", query.before),
        ("kind = ?", query.kind),
        ("actor = ?", query.actor),
        ("target = ?", query.target),
        ("request_id = ?", query.request_id),
        ("at >= ?", query.since),
        ("at < ?", query.until),
    ):
        if value is not None:
            clauses.append(clause)
            parameters.append(value)
    if query.action is not None:
        clauses.append("(action = ? OR substr(action, 1, ?) = ?)")
        parameters += [query.action, len(query.action) + 1, f"{query.action}."]
    return clauses, parameters


def _entry(row: tuple[int, float, str, str, str, str, str, str, str, str, str, str, str]) -> AuditEntry:
    number, at, kind, actor, source, request_id, call, reason, *rest = row
    return AuditEntry(number, at, kind, Origin(actor, source, request_id, call, reason), *rest)
