"""Sets and their entries: tables of the store's database.

Owns those tables. What writes is called inside a transaction of the store, by the thread that began it. Entries come
and go by the million as columns, which SQLite takes apart itself: that costs a fourth of a statement for each.

A row whose time has come is as good as gone, whenever it is deleted: no answer tells of it.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.address_index import Keys, encode_many, key_columns
from firewall.set_keys import SetKeys
from firewall.store import Store
from firewall.store_failures import Failures
from firewall.view import EntryQuery

_CHUNK = 32_768
_WIDTH = {4: 6, 6: 18}
_DIGIT = 256
_STEPS = 8  # of a search for a moment at which many entries expire: each looks at as many rows
_LEAST_S = 0.001
# Numbers from 0 to :count - 1 in order: two digits of loops over constants, a third of what a recursive query takes.
_ROWS = (
    f"WITH digit (d) AS (VALUES {','.join(f'({each})' for each in range(_DIGIT))}),"
    f" n (i) AS (SELECT high.d * {_DIGIT} + low.d FROM digit AS high CROSS JOIN digit AS low"
    f" WHERE high.d * {_DIGIT} + low.d < :count)"
)
_LIVES = "(expires_at IS NULL OR expires_at > ?)"
_COLUMNS = "number, name, description, source, created_at, updated_at"
Rows = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StoredSet:
    """Times are seconds since 1970, UTC."""

    number: int
    name: str
    description: str
    source: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class StoredEntry:
    prefix: Prefix
    expires_at: float | None
    comment: str | None
    created_at: float
    updated_at: float | None


Row = tuple[float, int, bytes]  # when it expires, set, key
_FIRST_ROW: Row = (float("-inf"), 0, b"")


@dataclass(frozen=True, slots=True)
class Expired:
    """Entries whose time has come: by set; the row that is the last of them, None for none; how many."""

    keys: dict[int, SetKeys]
    last: Row | None
    count: int


class Burst(NamedTuple):
    """Moments, seconds since 1970."""

    first: float
    last: float


class SetStore:
    """Reading may be done from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def _connection(self) -> sqlite3.Connection:
        return self._store.connection

    # -- sets

    def sets(self) -> list[StoredSet]:
        """By name."""
        with Failures("reading the sets"):
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM sets ORDER BY name").fetchall()
        return [StoredSet(*row) for row in rows]

    def by_name(self, name: str) -> StoredSet | None:
        with Failures("reading the sets"):
            query = f"SELECT {_COLUMNS} FROM sets WHERE name = ?"
            row = self._connection.execute(query, (name,)).fetchone()
        return None if row is None else StoredSet(*row)

    def create(self, name: str, description: str, source: str, now: float) -> StoredSet:
        with Failures("writing the set"):
            row = self._connection.execute(
                "INSERT INTO sets (name, description, source, created_at, updated_at) VALUES (?,?,?,?,?)",
                (name, description, source, now, now),
            )
        assert row.lastrowid is not None
        return StoredSet(row.lastrowid, name, description, source, now, now)

    def describe(self, number: int, description: str, source: str, now: float) -> None:
        with Failures("writing the set"):
            self._connection.execute(
                "UPDATE sets SET description = ?, source = ?, updated_at = ? WHERE number = ?",
                (description, source, now, number),
            )

    def note_update(self, number: int, now: float) -> None:
        with Failures("writing the set"):
            self._connection.execute("UPDATE sets SET updated_at = ? WHERE number = ?", (now, number))

    def delete(self, number: int) -> None:
        with Failures("deleting the set"):
            for table in ("set_entries", "sets"):
                self._connection.execute(f"DELETE FROM {table} WHERE number = ?", (number,))

    # -- entries

    def keys(self, number: int) -> SetKeys:
        """What is in a set."""
        return self._keys("set_entries WHERE number = ?", (number,))

    def keys_before(self, change: int, number: int, now: float) -> SetKeys:
        """What was in it before a change, as far as it has not expired."""
        clause = "undo_set_entries WHERE change = ? AND number = ? AND (expires_at IS NULL OR expires_at > ?)"
        return self._keys(clause, (change, number, now))

    def _keys(self, clause: str, parameters: Sequence[object]) -> SetKeys:
        found = []
        with Failures("reading the sets"):
            for version in BITS:
                query = f"SELECT group_concat(hex(key), '') FROM {clause} AND length(key) = {_WIDTH[version]}"
                text = self._connection.execute(query, parameters).fetchone()[0]
                found.append(_decoded(version, bytes.fromhex(text or "")))
        return SetKeys(found[0], found[1])

    def insert(
        self, number: int, come: SetKeys, expires_at: float | None, comment: str | None, now: float
    ) -> None:
        """Entries that are not there yet, or whose time has come, all alike."""
        values = {"number": number, "expires_at": expires_at, "comment": comment, "now": now}
        with Failures("writing the entries"):
            for version in BITS:
                for part in _parts(version, come.of(version)):
                    self._connection.execute(
                        f"{_ROWS} REPLACE INTO set_entries SELECT :number,"
                        " substr(:keys, i * :width + 1, :width), :expires_at, :comment, :now, NULL FROM n",
                        values | part,
                    )

    def insert_each(
        self,
        number: int,
        version: int,
        keys: Keys,
        expires_at: Sequence[float | None],
        comments: Sequence[str | None],
        now: float,
    ) -> None:
        """Entries that are not there yet, or whose time has come."""
        rows = zip(_blobs(version, keys), expires_at, comments, strict=True)
        with Failures("writing the entries"):
            self._connection.executemany(
                "REPLACE INTO set_entries VALUES (?,?,?,?,?,NULL)",
                ((number, key, until, comment, now) for key, until, comment in rows),
            )

    def refresh(
        self,
        number: int,
        version: int,
        keys: Keys,
        expires_at: Sequence[float | None],
        comments: Sequence[str | None],
        now: float,
        keep_comments: bool,
    ) -> int:
        """Of entries that are there: how many were others. `keep_comments`: where there is none now."""
        rows = zip(_blobs(version, keys), expires_at, comments, strict=True)
        comment = "coalesce(:comment, comment)" if keep_comments else ":comment"
        with Failures("writing the entries"):
            return self._connection.executemany(
                f"UPDATE set_entries SET expires_at = :until, comment = {comment}, updated_at = :now"
                " WHERE number = :number AND key = :key"
                f" AND (expires_at IS NOT :until OR comment IS NOT {comment})",
                (
                    {"key": key, "until": until, "comment": text, "now": now, "number": number}
                    for key, until, text in rows
                ),
            ).rowcount

    def delete_entries(self, number: int, gone: SetKeys) -> None:
        with Failures("deleting the entries"):
            for version in BITS:
                for part in _parts(version, gone.of(version)):
                    self._connection.execute(
                        f"{_ROWS} DELETE FROM set_entries WHERE number = :number AND key IN"
                        " (SELECT substr(:keys, i * :width + 1, :width) FROM n)",
                        {"number": number, **part},
                    )

    def delete_all_but(self, number: int, kept: SetKeys) -> None:
        """Where few stay: costs a fifth of deleting each of the others."""
        with Failures("deleting the entries"):
            keys = [blob for version in BITS for blob in _blobs(version, kept.of(version))]
            rows = [
                row
                for at in range(0, len(keys), 500)
                for row in self._connection.execute(
                    "SELECT * FROM set_entries WHERE number = ? AND key IN"
                    f" ({','.join('?' * len(keys[at : at + 500]))})",
                    (number, *keys[at : at + 500]),
                )
            ]
            self._connection.execute("DELETE FROM set_entries WHERE number = ?", (number,))
            self._connection.executemany("INSERT INTO set_entries VALUES (?,?,?,?,?,?)", rows)

    def has_particulars(self, number: int) -> bool:
        """Whether some entry expires, or has a comment."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM set_entries WHERE number = ?"
            " AND (expires_at IS NOT NULL OR comment IS NOT NULL))"
        )
        with Failures("reading the sets"):
            return bool(self._connection.execute(query, (number,)).fetchone()[0])

    def page(self, number: int, query: EntryQuery, offset: int, limit: int, now: float) -> list[StoredEntry]:
        where, parameters = _conditions(number, query, now)
        with Failures("reading the sets"):
            rows = self._connection.execute(
                f"SELECT key, expires_at, comment, created_at, updated_at FROM set_entries WHERE {where}"
                " ORDER BY key LIMIT ? OFFSET ?",
                (*parameters, limit, offset),
            ).fetchall()
        return [StoredEntry(_prefix(key), *rest) for key, *rest in rows]

    def count(self, number: int, query: EntryQuery, now: float) -> int:
        where, parameters = _conditions(number, query, now)
        with Failures("reading the sets"):
            row = self._connection.execute(
                f"SELECT count(*) FROM set_entries WHERE {where}", parameters
            ).fetchone()
        return int(row[0])

    def all(self, number: int, now: float) -> Iterator[StoredEntry]:
        """One after the other, as they were when the first was asked for."""
        query = (
            "SELECT key, expires_at, comment, created_at, updated_at FROM set_entries"
            f" WHERE number = ? AND {_LIVES} ORDER BY key"
        )
        connection = self._store.own_connection()
        try:
            with Failures("reading the sets"):
                for key, *rest in connection.execute(query, (number, now)):
                    yield StoredEntry(_prefix(key), *rest)
        finally:
            connection.close()

    # -- expiry

    def expired(self, now: float, limit: int, after: Row | None = None) -> Expired:
        """The first whose time has come, behind a row."""
        with Failures("reading the sets"):
            rows = self._connection.execute(
                "SELECT expires_at, number, key FROM set_entries WHERE expires_at <= ?"
                " AND (expires_at, number, key) > (?, ?, ?) ORDER BY expires_at, number, key LIMIT ?",
                (now, *(after or _FIRST_ROW), limit),
            ).fetchall()
        found: dict[int, dict[int, list[bytes]]] = defaultdict(
            lambda: {width: [] for width in _WIDTH.values()}
        )
        for _, number, key in rows:
            found[number][len(key)].append(key)
        keys = {
            number: SetKeys(*(_decoded(version, b"".join(mine[_WIDTH[version]])) for version in BITS))
            for number, mine in found.items()
        }
        return Expired(keys, rows[-1] if rows else None, len(rows))

    def nth_expiry(self, number: int) -> float | None:
        """When the entry expires that is the nth to do so; None where fewer do."""
        return self._moment("expires_at IS NOT NULL ORDER BY expires_at LIMIT 1 OFFSET ?", number - 1)

    def burst(self, begin: float, end: float, many: int, within_s: float) -> Burst | None:
        """The first moment of a time from which on so many entries expire within seconds, and the last of these."""
        for _ in range(_STEPS):
            first = self._moment("expires_at > ? AND expires_at <= ? ORDER BY expires_at LIMIT 1", begin, end)
            if first is None:
                return None
            nth = self._moment("expires_at >= ? ORDER BY expires_at LIMIT 1 OFFSET ?", first, many - 1)
            if nth is None:
                return None
            if nth <= first + within_s:
                among = "expires_at >= ? AND expires_at <= ? ORDER BY expires_at DESC LIMIT 1"
                return Burst(first, self._moment(among, first, first + within_s) or nth)
            begin = max(nth - within_s - _LEAST_S, first + within_s / 4)
        return None

    def _moment(self, clause: str, *parameters: float) -> float | None:
        with Failures("reading the sets"):
            row = self._connection.execute(
                f"SELECT expires_at FROM set_entries WHERE {clause}", parameters
            ).fetchone()
        return None if row is None else float(row[0])

    def delete_expired(self, now: float) -> int:
        with Failures("deleting the entries"):
            query = "DELETE FROM set_entries WHERE expires_at <= ?"
            return self._connection.execute(query, (now,)).rowcount

    def next_expiry(self) -> float | None:
        with Failures("reading the sets"):
            row = self._connection.execute(
                "SELECT min(expires_at) FROM set_entries WHERE expires_at IS NOT NULL"
            ).fetchone()
        return None if row[0] is None else float(row[0])


def _stored(version: int, keys: Keys) -> Rows:
    """Keys as they are stored, a row each, sorted so."""
    _, lengths, addresses = key_columns(version, keys)
    rows = np.empty((len(keys), _WIDTH[version]), np.uint8)
    rows[:, 0], rows[:, 1:-1], rows[:, -1] = version, addresses, lengths
    order = np.argsort(rows.view(f"S{_WIDTH[version]}").reshape(-1), kind="stable")
    return rows[order]


def _parts(version: int, keys: Keys) -> Iterator[dict[str, object]]:
    rows = _stored(version, keys)
    for at in range(0, len(rows), _CHUNK):
        some = rows[at : at + _CHUNK]
        yield {"count": len(some), "keys": some.tobytes(), "width": _WIDTH[version]}


def _blobs(version: int, keys: Keys) -> Iterator[bytes]:
    """In the keys' order."""
    _, lengths, addresses = key_columns(version, keys)
    width = _WIDTH[version]
    rows = np.empty((len(keys), width), np.uint8)
    rows[:, 0], rows[:, 1:-1], rows[:, -1] = version, addresses, lengths
    raw = rows.tobytes()
    return (raw[at : at + width] for at in range(0, len(raw), width))


def _decoded(version: int, raw: bytes) -> Keys:
    rows = np.frombuffer(raw, np.uint8).reshape(-1, _WIDTH[version])
    return np.sort(encode_many(version, 0, rows[:, -1], np.ascontiguousarray(rows[:, 1:-1])))


def _blob(prefix: Prefix) -> bytes:
    size = BITS[prefix.version] // 8
    return bytes((prefix.version,)) + prefix.address.to_bytes(size, "big") + bytes((prefix.length,))


def _prefix(key: bytes) -> Prefix:
    return Prefix(key[0], int.from_bytes(key[1:-1], "big"), key[-1])


def _conditions(number: int, query: EntryQuery, now: float) -> tuple[str, list[object]]:
    clauses = ["number = ?", _LIVES]
    values: list[object] = [number, now]
    if query.address is not None:
        version, address, length = query.address
        bits = BITS[version]
        covering = [
            _blob(Prefix(version, address >> (bits - each) << (bits - each), each)) for each in range(length)
        ]
        first = _blob(query.address)[:-1]
        last = (address | (1 << (bits - length)) - 1).to_bytes(bits // 8, "big")
        clauses.append(f"((key >= ? AND key <= ?) OR key IN ({','.join('?' * len(covering))}))")
        values += [first + b"\0", first[:1] + last + b"\xff", *covering]
    if query.expires is not None:
        clauses.append(f"expires_at IS {'NOT ' if query.expires else ''}NULL")
    if query.comment is not None:
        clauses.append("instr(comment, ?) > 0")
        values.append(query.comment)
    return " AND ".join(clauses), values
