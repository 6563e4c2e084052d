"""Changes that wait for their confirmation, and what takes each back: tables of the store's database.

Owns those tables. An undo is written in the transaction of its change, so both are durable or neither is. It names
what it touches by handles, of which long runs are one row: a million addresses are a range. Knows no map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from firewall.set_keys import SetKeys
from firewall.set_store import SetStore
from firewall.store import BlockRules, InterfaceRequest, Record, Store
from firewall.store_failures import Failures

_KEPT = 20  # changes that ended
_COLUMNS = "id, what, made_at, deadline, due, boot, added, removed, changed, state, reason, ended_at"
Ranges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PendingChange:
    """`deadline`: seconds since 1970. `due`: the same moment by the clock of boot `boot` that only goes forward."""

    id: int
    what: str
    made_at: float
    deadline: float
    due: float
    boot: str
    added: int = 0
    removed: int = 0
    changed: int = 0
    state: str = "pending"
    reason: str = ""
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Touched:
    """What a pending change changed, so that no other does."""

    handles: frozenset[int]
    ranges: tuple[tuple[int, int], ...]
    ids: frozenset[str]
    interfaces: frozenset[str]
    sets: frozenset[str] = frozenset()

    def rule(self, record: Record) -> bool:
        return (
            record.handle in self.handles
            or record.rule.id in self.ids
            or any(first <= record.handle < past for first, past in self.ranges)
        )


@dataclass(frozen=True)
class Undo:
    """To take a change back: `present` goes, `before` comes (a rule that is in both changes back), of blocks
    `leaving` goes and `arriving` comes. `added`: handles of `present` that go for good. `interfaces`: requests as they
    were, None for none. `sets`: what was in each that changed, as far as it has not expired."""

    present: list[Record]
    before: list[Record]
    added: frozenset[int] = frozenset()
    leaving: list[BlockRules] = field(default_factory=list)
    arriving: list[BlockRules] = field(default_factory=list)
    interfaces: dict[str, InterfaceRequest | None] = field(default_factory=dict)
    sets: dict[str, SetKeys] = field(default_factory=dict)


class UndoLog:
    """What writes is called inside a transaction of the store, by the thread that began it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._set_store = SetStore(store)

    # -- writing

    def begin(self, change: PendingChange) -> int:
        """Writes a new change; its number. Its own id is not looked at."""
        values = [getattr(change, name) for name in _COLUMNS.split(", ")[1:]]
        with Failures("writing the change"):
            row = self._store.connection.execute(
                f"INSERT INTO changes ({_COLUMNS.partition(', ')[2]}) VALUES (?,?,?,?,?,?,?,?,?,?,?)", values
            )
        assert row.lastrowid is not None
        return row.lastrowid

    def save_rules(self, change: int, removed: Sequence[Record], written: Sequence[Record]) -> None:
        """Before they are written: rules as they are. A record in both changes."""
        going = [each.handle for each in removed]
        of_blocks = self._store.in_blocks(going)
        loose = set(going) - set(of_blocks)
        come = {each.handle for each in written} - set(going)
        with Failures("writing the change"):
            self._store.connection.executemany(
                "INSERT INTO undo_rules SELECT ?, rules.* FROM rules WHERE handle = ?",
                [(change, handle) for handle in sorted(loose)],
            )
        self._save_ranges(change, "gone", _runs(of_blocks))
        self._save_ranges(change, "added", _runs(come))

    def save_blocks(self, change: int, ranges: Ranges) -> None:
        """Blocks that come: the first handle of each, and the one past its last."""
        self._save_ranges(change, "imported", ranges)

    def _save_ranges(self, change: int, kind: str, ranges: Ranges) -> None:
        with Failures("writing the change"):
            self._store.connection.executemany(
                "INSERT INTO undo_ranges VALUES (?,?,?,?)",
                [(change, kind, first, past) for first, past in ranges],
            )

    def save_interface(self, change: int, name: str, request: InterfaceRequest | None) -> None:
        values = (None,) * 4 if request is None else request[1:]
        with Failures("writing the change"):
            row = (change, name, *values)
            self._store.connection.execute("INSERT INTO undo_interfaces VALUES (?,?,?,?,?,?)", row)

    def save_set(self, change: int, number: int) -> None:
        """Before it changes, or goes: all of it as it is."""
        connection = self._store.connection
        with Failures("writing the change"):
            connection.execute(
                "INSERT INTO undo_sets SELECT ?, number, name, description, source, created_at, updated_at"
                " FROM sets WHERE number = ?",
                (change, number),
            )
            connection.execute(
                "INSERT INTO undo_set_entries SELECT ?, * FROM set_entries WHERE number = ?", (change, number)
            )

    def save_new_set(self, change: int, number: int, name: str) -> None:
        with Failures("writing the change"):
            self._store.connection.execute(
                "INSERT INTO undo_sets VALUES (?,?,?,NULL,NULL,NULL,NULL)", (change, number, name)
            )

    def end(self, change: int, state: str, reason: str, now: float) -> None:
        """Confirmed or rolled back: nothing more is known of it than that."""
        connection = self._store.connection
        with Failures("ending the change"):
            if state == "confirmed":  # what deleted rules had counted was kept in case they came back
                for table in ("hits", "resets"):
                    connection.execute(
                        f"DELETE FROM {table} WHERE handle IN (SELECT handle FROM undo_rules WHERE change = ?)"
                        " AND handle NOT IN (SELECT handle FROM rules)",
                        (change,),
                    )
                    for first, past in self._ranges(change, "gone"):
                        connection.execute(
                            f"DELETE FROM {table} WHERE handle >= ? AND handle < ?"
                            " AND handle NOT IN (SELECT handle FROM rules)",
                            (first, past),
                        )
            connection.execute(
                "UPDATE changes SET state = ?, reason = ?, ended_at = ? WHERE id = ?",
                (state, reason, now, change),
            )
            for table in ("undo_rules", "undo_ranges", "undo_interfaces", "undo_sets", "undo_set_entries"):
                connection.execute(f"DELETE FROM {table} WHERE change = ?", (change,))
            connection.execute(
                "DELETE FROM changes WHERE state != 'pending' AND id NOT IN"
                " (SELECT id FROM changes WHERE state != 'pending' ORDER BY ended_at DESC, id DESC LIMIT ?)",
                (_KEPT,),
            )

    def take_back(self, change: int, reason: str, now: float) -> None:
        """Everything that the change touched is stored as it was."""
        connection = self._store.connection
        with Failures("taking the change back"):
            for first, past in self._ranges(change, "added"):
                for table in ("rules", "hits", "resets"):
                    connection.execute(f"DELETE FROM {table} WHERE handle >= ? AND handle < ?", (first, past))
            for first, past in self._ranges(change, "gone"):
                for table in ("rules", "gone"):
                    connection.execute(f"DELETE FROM {table} WHERE handle >= ? AND handle < ?", (first, past))
            connection.execute(
                "DELETE FROM rules WHERE handle IN (SELECT handle FROM undo_rules WHERE change = ?)",
                (change,),
            )
            connection.execute(
                "INSERT INTO rules SELECT handle, id, fields, direction, action, enabled, created_at, updated_at,"
                " expires_at FROM undo_rules WHERE change = ?",
                (change,),
            )
            self._take_back_sets(change, now)
        self._store.remove_blocks([first for first, _ in self._ranges(change, "imported")])
        for name, request in self.interfaces(change).items():
            self._store.write_interface(request, name)
        self._store.advance_revision()
        self.end(change, "rolled_back", reason, now)

    def _take_back_sets(self, change: int, now: float) -> None:
        connection = self._store.connection
        rows = connection.execute(
            "SELECT number, name, description FROM undo_sets WHERE change = ?", (change,)
        )
        for number, name, description in rows.fetchall():
            connection.execute("DELETE FROM set_entries WHERE number = ?", (number,))
            if description is not None or not self._names_set(name):
                connection.execute("DELETE FROM sets WHERE number = ?", (number,))
        connection.execute(
            "INSERT INTO sets SELECT number, name, description, source, created_at, updated_at FROM undo_sets"
            " WHERE change = ? AND description IS NOT NULL",
            (change,),
        )
        connection.execute(
            "INSERT INTO set_entries SELECT number, key, expires_at, comment, created_at, updated_at"
            " FROM undo_set_entries WHERE change = ? AND (expires_at IS NULL OR expires_at > ?)",
            (change, now),
        )

    def _names_set(self, name: str) -> bool:
        """Whether a rule does."""
        query = "SELECT EXISTS (SELECT 1 FROM rules WHERE instr(fields, ?) > 0)"
        return bool(self._store.connection.execute(query, (f'"@{name}"',)).fetchone()[0])

    def awaits_set(self, name: str) -> int | None:
        """A change that waits, whose way back has rules that name a set."""
        with Failures("reading the changes"):
            row = self._store.connection.execute(
                "SELECT change FROM undo_rules WHERE instr(fields, ?) > 0 LIMIT 1", (f'"@{name}"',)
            ).fetchone()
        return None if row is None else int(row[0])

    # -- reading

    def changes(self, state: str | None = None) -> list[PendingChange]:
        """The oldest first."""
        where = "" if state is None else "WHERE state = ?"
        with Failures("reading the changes"):
            rows = self._store.connection.execute(
                f"SELECT {_COLUMNS} FROM changes {where} ORDER BY id", () if state is None else (state,)
            ).fetchall()
        return [PendingChange(*row) for row in rows]

    def touched(self, change: int) -> Touched:
        with Failures("reading the changes"):
            rows = self._store.connection.execute(
                "SELECT handle, id FROM undo_rules WHERE change = ?", (change,)
            ).fetchall()
        ranges = [each for kind in ("added", "imported", "gone") for each in self._ranges(change, kind)]
        return Touched(
            frozenset(row[0] for row in rows),
            tuple(ranges),
            frozenset(row[1] for row in rows),
            frozenset(self.interfaces(change)),
            frozenset(self._sets(change).values()),
        )

    def _sets(self, change: int) -> dict[int, str]:
        with Failures("reading the changes"):
            query = "SELECT number, name FROM undo_sets WHERE change = ?"
            return dict(self._store.connection.execute(query, (change,)).fetchall())

    def undo(self, change: int, now: float) -> Undo:
        connection = self._store.connection
        with Failures("reading the changes"):
            rows = connection.execute(
                "SELECT handle, id, fields, created_at, updated_at, expires_at FROM undo_rules"
                " WHERE change = ? ORDER BY handle",
                (change,),
            ).fetchall()
        before = [self._store.record(row) for row in rows]
        gone = self._ranges(change, "gone")
        present = self._store.by_handles([each.handle for each in before])
        added = [
            each for first, past in self._ranges(change, "added") for each in self._store.between(first, past)
        ]
        present += added
        for first, past in gone:
            present += self._store.between(first, past)
        imported = {first for first, _ in self._ranges(change, "imported")}
        blocks = self._store.blocks()
        leaving = [self._store.block_rules(each) for each in blocks if each.first_handle in imported]
        return Undo(
            present,
            before,
            frozenset(each.handle for each in added),
            leaving,
            list(self._arriving(gone)),
            self.interfaces(change),
            {
                name: self._set_store.keys_before(change, number, now)
                for number, name in self._sets(change).items()
            },
        )

    def _arriving(self, gone: Ranges) -> Iterator[BlockRules]:
        for block in self._store.blocks():
            end = block.first_handle + block.count
            parts = [
                np.arange(max(first, block.first_handle), min(past, end)) - block.first_handle
                for first, past in gone
                if first < end and past > block.first_handle
            ]
            if parts:
                yield self._store.block_part(block, np.concatenate(parts))

    def interfaces(self, change: int) -> dict[str, InterfaceRequest | None]:
        with Failures("reading the changes"):
            rows = self._store.connection.execute(
                "SELECT name, attach, mode, ingress, egress FROM undo_interfaces WHERE change = ?", (change,)
            ).fetchall()
        return {
            name: None
            if attach is None
            else InterfaceRequest(name, bool(attach), mode, bool(ingress), bool(egress))
            for name, attach, mode, ingress, egress in rows
        }

    def _ranges(self, change: int, kind: str) -> Ranges:
        with Failures("reading the changes"):
            return list(
                self._store.connection.execute(
                    "SELECT first, past FROM undo_ranges WHERE change = ? AND kind = ? ORDER BY first",
                    (change, kind),
                )
            )


def _runs(handles: Iterable[int]) -> Ranges:
    """Neighbours as one range each."""
    numbers = np.unique(np.fromiter(handles, np.int64))
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    firsts, lasts = numbers[np.r_[0, breaks]], numbers[np.r_[breaks - 1, len(numbers) - 1]]
    return [(first, last + 1) for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)]
