"""The truth: rules, requested interfaces and saved hits in SQLite.

Owns the transaction around a change: it is durable (WAL, synchronous FULL) when commit
returns. Knows no map and no HTTP. One connection writes; readers have their own.
"""

from __future__ import annotations

import heapq
import json
import re
import sqlite3
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall import schema
from firewall.address import Prefix
from firewall.audit_entry import AuditEntry
from firewall.errors import FirewallError, StoreFailed
from firewall.hits import Hits, Reset
from firewall.rule import Rule, rank_of, rule_from_fields
from firewall.store_failures import Failures
from firewall.timings import Timings
from firewall.view import RuleQuery

# The label, as encode() writes it: a quote inside other text has a backslash before it.
_MEASURED = """instr(fields, '"metrics":"true"') > 0"""
_COLUMNS = "handle, id, fields, created_at, updated_at, expires_at"


@dataclass(frozen=True, slots=True)
class Record:
    """A stored rule. The handle is its number in the kernel: never used again for another rule."""

    handle: int
    rule: Rule
    created_at: float
    updated_at: float


@dataclass(frozen=True)
class Block:
    """Rules that are one address or CIDR each and alike in all else, by the million. `direction` ingress: they are
    sources; egress: destinations. The n-th rule has handle first_handle + n and id import-UID-N."""

    first_handle: int
    count: int
    uid: str
    version: int
    action: str
    priority: int
    direction: str
    created_at: float

    @property
    def rank(self) -> int:
        return rank_of(self.priority, self.action)

    def record(self, number: int, address: bytes, length: int) -> Record:
        prefix = Prefix(self.version, int.from_bytes(address, "big"), length)
        side = {"sources": (prefix,)} if self.direction == "ingress" else {"destinations": (prefix,)}
        rule = Rule(
            id=f"import-{self.uid}-{number}",
            action=self.action,  # type: ignore[arg-type]
            priority=self.priority,
            direction=self.direction,  # type: ignore[arg-type]
            **side,  # type: ignore[arg-type]
        )
        return Record(self.first_handle + number, rule, self.created_at, self.created_at)


@dataclass(frozen=True)
class BlockRules:
    """What of a block is left: numbers within it, and a row each of its columns."""

    block: Block
    numbers: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.uint8]
    addresses: npt.NDArray[np.uint8]

    def records(self) -> Iterator[Record]:
        for number, length, address in zip(
            self.numbers.tolist(), self.lengths.tolist(), self.addresses, strict=True
        ):
            yield self.block.record(number, address.tobytes(), length)


class InterfaceRequest(NamedTuple):
    """What the API asked for an interface; `attach` False: leave it alone although the config names it."""

    name: str
    attach: bool
    mode: str
    ingress: bool
    egress: bool


class InterfaceTotal(NamedTuple):
    interface: str
    hook: int
    verdict: int
    reason: int
    packets: int
    bytes: int


_DEFAULTS = Rule("default").fields()
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_BLOCK_COLUMNS = "first_handle, count, uid, version, action, priority, direction, created_at"
_BLOCK_ID = re.compile(r"import-([0-9a-f]{8})-(0|[1-9]\d{0,8})")


def encode(rule: Rule) -> str:
    fields = {
        name: value for name, value in rule.fields().items() if value != _DEFAULTS[name] and name != "id"
    }
    fields.pop("expires_at", None)
    if rule.ttl_s is not None:
        fields["ttl"] = rule.ttl_s
    return _ENCODER.encode(fields)


def decode(rule_id: str, fields: str, expires_at: float | None) -> Rule:
    """What encode() wrote. The moment of expiry is the stored one: a ttl does not start again."""
    loaded = json.loads(fields)
    rule = rule_from_fields(loaded, rule_id, 0.0)
    return replace(rule, expires_at=expires_at)


_FEW = 4  # rules of a block; for more of them all of it is read
_DISK_HINT = "check the disk and the state directory's permissions"


class TransactionLost(StoreFailed):
    """The database gave up the transaction as a whole, as it does where the disk is full or broken."""


_failures = partial(Failures, hint=_DISK_HINT)


class Store:
    """Opens or makes the database. Raises StoreFailed where it cannot be used.

    `before_commit` is called at the end of a transaction() or savepoint(), inside it; `when_durable` with what
    tell_when_durable() was given once it is; whoever keeps the audit puts others in their places."""

    before_commit: Callable[[], None] = staticmethod(lambda: None)
    when_durable: Callable[[Sequence[tuple[int, AuditEntry]]], None] = staticmethod(lambda _: None)

    def __init__(self, path: Path) -> None:
        self._path = path
        self._readers = threading.local()
        self.commits = Timings()
        with _failures(f"opening {path}"):
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise StoreFailed(
                    f"cannot make {path.parent}: {error}", "see state.directory in the config"
                ) from error
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            self._migrate()
            self.identity = str(self._meta("identity"))
            self._revision = self._durable_revision = int(str(self._meta("revision")))
            self.next_handle = self._durable_handle = int(str(self._meta("next_handle")))
            self._writing_thread: int | None = None
            self._changing_thread: int | None = None
            self._to_tell: list[tuple[int, AuditEntry]] = []
            # What readers see: a block is there once it is durable.
            self._blocks = self._load_blocks(self._writer)
            self._written_blocks: list[Block] = []
            self._removed_blocks: set[int] = set()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5)

    @property
    def revision(self) -> int:
        """The durable one; inside a transaction, for the thread that writes, what it will be."""
        return self._revision if self._is_writing else self._durable_revision

    @property
    def _is_writing(self) -> bool:
        return self._writing_thread == threading.get_ident()

    @property
    def _reader(self) -> sqlite3.Connection:
        """A connection of the calling thread, so that reading never waits for the writer. Inside a transaction the
        thread that writes sees what it wrote; no other does before it is durable."""
        if threading.get_ident() in (self._writing_thread, self._changing_thread):
            return self._writer
        if not hasattr(self._readers, "connection"):
            self._readers.connection = self._connect()
        connection: sqlite3.Connection = self._readers.connection
        return connection

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around changes, by the one thread that may make some. It reads by the connection that writes, whose cache
        knows what was written; that of another connection is worth nothing after each transaction."""
        self._changing_thread = threading.get_ident()
        try:
            yield
        finally:
            self._changing_thread = None

    @property
    def connection(self) -> sqlite3.Connection:
        """For tables that another module owns: reading anywhere, writing inside a transaction."""
        return self._reader

    def own_connection(self) -> sqlite3.Connection:
        """For a reading that lasts and sees one moment. Whoever asks closes it."""
        with _failures(f"opening {self._path}"):
            return self._connect()

    def _migrate(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= schema.VERSION:
            raise StoreFailed(
                f"{self._path} has schema {version}, this version of ebpf-fw reads {schema.VERSION} and older",
                "it was written by another version; install that one or restore a backup",
            )
        schema.migrate(self._writer, version)

    def _meta(self, key: str) -> object:
        row = self._writer.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise StoreFailed(
                f"{self._path} is damaged: meta has no {key}", "restore a backup of the state directory"
            )
        return row[0]

    def close(self) -> None:
        self._writer.close()

    def try_writing(self) -> None:
        """Raises StoreFailed where nothing can be made durable."""
        with self.transaction(), _failures("making the change durable"):
            self._write_meta()

    # -- changes

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Durable when it ends; nothing of it is there when it raises."""
        self.begin()
        try:
            yield
            self.before_commit()
            self.commit()
        except BaseException:
            self.rollback()
            raise

    def begin(self) -> None:
        """commit() or rollback() ends it, in the same thread."""
        with _failures("writing the rules"):
            self._writer.execute("BEGIN IMMEDIATE")
        self._writing_thread = threading.get_ident()
        self._written_blocks, self._removed_blocks, self._to_tell = [], set(), []

    def tell_when_durable(self, entry: tuple[int, AuditEntry]) -> None:
        """Inside a transaction: an entry of the audit, with its id."""
        self._to_tell.append(entry)

    def commit(self) -> None:
        """What was written is durable when it returns: WAL with synchronous FULL syncs the log before that, and shows
        other connections nothing earlier. Where it raises, rollback() is still to be called."""
        with self.commits.timing(), _failures("making the change durable"):
            if (self._revision, self.next_handle) != (self._durable_revision, self._durable_handle):
                self._write_meta()  # once for all changes of the transaction
            self._writer.execute("COMMIT")
        self._durable_revision, self._durable_handle = self._revision, self.next_handle
        self._writing_thread = None
        stay = [each for each in self._blocks if each.first_handle not in self._removed_blocks]
        self._blocks = [*stay, *self._written_blocks]
        told, self._to_tell = self._to_tell, []
        self.when_durable(told)

    def rollback(self) -> None:
        self._writing_thread = None
        self._to_tell = []
        self._revision, self.next_handle = self._durable_revision, self._durable_handle
        if self._writer.in_transaction:
            with _failures("taking the change back"):
                self._writer.execute("ROLLBACK")

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Inside a transaction: nothing of it is there when it raises, and what was written before it stays. Raises
        TransactionLost where that cannot be: then nothing of the whole transaction can become durable."""
        before, told = (self._revision, self.next_handle), len(self._to_tell)
        with _failures("writing the rules"):
            self._writer.execute("SAVEPOINT change")
        try:
            yield
            self.before_commit()
            with _failures("writing the rules"):
                self._writer.execute("RELEASE change")
        except BaseException as error:
            self._revision, self.next_handle = before
            del self._to_tell[told:]
            try:
                self._writer.execute("ROLLBACK TO change")
                self._writer.execute("RELEASE change")
            except sqlite3.Error as lost:
                raise TransactionLost(f"{error}; and taking it back: {lost}", _DISK_HINT) from error
            raise

    def write_rules(
        self, deleted: Sequence[int], written: Sequence[Record], keep_hits: bool = False
    ) -> list[str]:
        """Inside a transaction. `written` replaces what has its handle. `keep_hits`: of the deleted, which may come
        back. The written rules as they are stored: JSON of what differs from the defaults."""
        gone = [(handle,) for handle in deleted]
        of_blocks = [
            (each,) for each in (*deleted, *(each.handle for each in written)) if self._block_of(each)
        ]
        rows = [
            (each.handle, each.rule.id, encode(each.rule), each.rule.direction, each.rule.action, each.rule.enabled,
             each.created_at, each.updated_at, each.rule.expires_at)
            for each in written
        ]  # fmt: skip
        self._revision += 1
        self.next_handle = max([self.next_handle, *(each.handle + 1 for each in written)])
        with _failures("writing the rules"):
            self._write_many("DELETE FROM rules WHERE handle = ?", gone)
            if not keep_hits:
                self._write_many("DELETE FROM hits WHERE handle = ?", gone)
                self._write_many("DELETE FROM resets WHERE handle = ?", gone)
            self._write_many("INSERT OR IGNORE INTO gone VALUES (?)", of_blocks)
            self._write_many("INSERT OR REPLACE INTO rules VALUES (?,?,?,?,?,?,?,?,?)", rows)
        return [row[2] for row in rows]

    def _write_many(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if rows:  # each statement costs, even one about nothing
            self._writer.executemany(statement, rows)

    def _write_meta(self) -> None:
        self._writer.executemany(
            "UPDATE meta SET value = ? WHERE key = ?",
            [(self._revision, "revision"), (self.next_handle, "next_handle")],
        )

    def write_block(
        self, block: Block, lengths: npt.NDArray[np.uint8], addresses: npt.NDArray[np.uint8]
    ) -> None:
        """Inside a transaction."""
        self._revision += 1
        self.next_handle = block.first_handle + block.count
        with _failures("writing the rules"):
            row = (
                *(getattr(block, name) for name in _BLOCK_COLUMNS.split(", ")),
                lengths.tobytes(),
                addresses.tobytes(),
            )
            self._writer.execute("INSERT INTO blocks VALUES (?,?,?,?,?,?,?,?,?,?)", row)
        self._written_blocks.append(block)

    def remove_blocks(self, first_handles: Sequence[int]) -> None:
        """Inside a transaction: as if they had never been imported."""
        with _failures("writing the rules"):
            for block in [each for each in self._blocks if each.first_handle in first_handles]:
                span = block.first_handle, block.first_handle + block.count
                self._writer.execute("DELETE FROM blocks WHERE first_handle = ?", span[:1])
                for table in ("gone", "hits", "resets", "rules"):
                    self._writer.execute(f"DELETE FROM {table} WHERE handle >= ? AND handle < ?", span)
                self._removed_blocks.add(block.first_handle)

    def advance_revision(self) -> None:
        """Inside a transaction that changed rules in another way."""
        self._revision += 1

    # -- blocks

    def _block_of(self, handle: int) -> Block | None:
        at = bisect_right(self._blocks, handle, key=lambda each: each.first_handle) - 1
        block = self._blocks[at] if at >= 0 else None
        return block if block and handle < block.first_handle + block.count else None

    @staticmethod
    def _load_blocks(connection: sqlite3.Connection) -> list[Block]:
        rows = connection.execute(f"SELECT {_BLOCK_COLUMNS} FROM blocks ORDER BY first_handle")
        return [Block(*row) for row in rows]

    def block_rules(self, block: Block, connection: sqlite3.Connection | None = None) -> BlockRules:
        """All that is left of a block."""
        connection = connection or self._reader
        with _failures("reading the rules"):
            query = "SELECT lengths, addresses FROM blocks WHERE first_handle = ?"
            lengths, addresses = connection.execute(query, (block.first_handle,)).fetchone()
            gone = self._gone(block.first_handle, block.first_handle + block.count, connection)
        left = np.ones(block.count, np.bool_)
        left[np.array(gone, np.int64) - block.first_handle] = False
        columns = (
            np.frombuffer(lengths, np.uint8),
            np.frombuffer(addresses, np.uint8).reshape(block.count, -1),
        )
        return BlockRules(block, np.flatnonzero(left), columns[0][left], columns[1][left])

    def block_part(self, block: Block, numbers: npt.NDArray[np.int64]) -> BlockRules:
        """Those of a block that have these numbers, deleted or not."""
        with _failures("reading the rules"):
            query = "SELECT lengths, addresses FROM blocks WHERE first_handle = ?"
            lengths, addresses = self._reader.execute(query, (block.first_handle,)).fetchone()
        rows = np.frombuffer(addresses, np.uint8).reshape(block.count, -1)
        return BlockRules(block, numbers, np.frombuffer(lengths, np.uint8)[numbers], rows[numbers])

    def in_blocks(self, handles: Iterable[int]) -> list[int]:
        """Of these handles, those that are rules of a block as they were imported."""
        candidates = [each for each in handles if self._block_of(each)]
        if not candidates:
            return []
        with _failures("reading the rules"):
            gone = set(self._gone(min(candidates), max(candidates) + 1))
        return [each for each in candidates if each not in gone]

    def _gone(self, first: int, end: int, connection: sqlite3.Connection | None = None) -> list[int]:
        query = "SELECT handle FROM gone WHERE handle >= ? AND handle < ?"
        return [row[0] for row in (connection or self._reader).execute(query, (first, end))]

    def blocks(self) -> list[Block]:
        return self._blocks

    def _block_record(self, block: Block, number: int) -> Record | None:
        if not 0 <= number < block.count:
            return None
        size = 4 if block.version == 4 else 16
        query = (
            "SELECT substr(lengths, ?, 1), substr(addresses, ?, ?) FROM blocks WHERE first_handle = ?"
            " AND NOT EXISTS (SELECT 1 FROM gone WHERE handle = ?)"
        )
        handle = block.first_handle + number
        with _failures("reading the rules"):
            parameters = (number + 1, number * size + 1, size, block.first_handle, handle)
            row = self._reader.execute(query, parameters).fetchone()
        return block.record(number, row[1], row[0][0]) if row else None

    def _block_by_id(self, rule_id: str) -> Record | None:
        named = _BLOCK_ID.fullmatch(rule_id)
        block = next((each for each in self._blocks if named and each.uid == named[1]), None)
        return self._block_record(block, int(named[2])) if named and block else None

    def write_interface(self, request: InterfaceRequest | None, name: str) -> None:
        """None: forget what was asked for `name`."""
        with _failures("writing the interfaces"):
            self._writer.execute("DELETE FROM interfaces WHERE name = ?", (name,))
            if request is not None:
                self._writer.execute("INSERT INTO interfaces VALUES (?,?,?,?,?)", request)

    def panic(self) -> str | None:
        """As write_panic() was given it."""
        with _failures("reading the panic state"):
            row = self._writer.execute("SELECT value FROM meta WHERE key = 'panic'").fetchone()
        return None if row is None else str(row[0])

    def write_panic(self, encoded: str | None) -> None:
        """None: it is off."""
        with _failures("writing the panic state"):
            self._writer.execute("DELETE FROM meta WHERE key = 'panic'")
            if encoded is not None:
                self._writer.execute("INSERT INTO meta VALUES ('panic', ?)", (encoded,))

    def add_hits(self, hits: Iterable[tuple[int, Hits]]) -> None:
        """To what is saved for these handles."""
        rows = [(handle, *each) for handle, each in hits if each.packets]
        if not rows:
            return
        with _failures("saving counters"):
            self._writer.executemany(
                "INSERT INTO hits VALUES (?,?,?,?) ON CONFLICT (handle) DO UPDATE SET"
                " packets = packets + excluded.packets, bytes = bytes + excluded.bytes,"
                " last_hit = max(last_hit, excluded.last_hit)",
                rows,
            )

    def write_resets(self, resets: Iterable[tuple[int, Reset]]) -> None:
        """Inside a transaction: what counted from 0 again, by handle."""
        with _failures("saving counters"):
            self._writer.executemany(
                "INSERT OR REPLACE INTO resets VALUES (?,?,?,?)", [(handle, *each) for handle, each in resets]
            )

    def resets(self) -> dict[int, Reset]:
        with _failures("reading counters"):
            return {row[0]: Reset(*row[1:]) for row in self._reader.execute("SELECT * FROM resets")}

    def handles_hit_since(self, moment: float) -> npt.NDArray[np.int64]:
        """Of rules whose saved hits say so."""
        with _failures("reading counters"):
            rows = self._reader.execute("SELECT handle FROM hits WHERE last_hit >= ?", (moment,)).fetchall()
        return np.array(rows, np.int64).reshape(-1)

    def add_interface_hits(self, totals: Iterable[InterfaceTotal]) -> None:
        with _failures("saving counters"):
            self._writer.executemany(
                "INSERT INTO interface_hits VALUES (?,?,?,?,?,?) ON CONFLICT DO UPDATE SET"
                " packets = packets + excluded.packets, bytes = bytes + excluded.bytes",
                totals,
            )

    # -- reads

    @staticmethod
    def record(row: tuple[int, str, str, float, float, float | None]) -> Record:
        """Of handle, id, fields, created_at, updated_at, expires_at. Raises StoreFailed where they are damaged."""
        return _record(row)

    def _records(
        self, clause: str, parameters: Sequence[object] = (), connection: sqlite3.Connection | None = None
    ) -> list[Record]:
        query = f"SELECT {_COLUMNS} FROM rules {clause}"
        with _failures("reading the rules"):
            rows = (connection or self._reader).execute(query, parameters).fetchall()
        return [_record(row) for row in rows]

    def by_id(self, rule_id: str) -> Record | None:
        return next(iter(self._records("WHERE id = ?", (rule_id,))), None) or self._block_by_id(rule_id)

    def by_ids(self, rule_ids: Sequence[str]) -> dict[str, Record]:
        found = {each.rule.id: each for each in self._by_many("id", rule_ids)}
        if self._blocks:
            of_blocks = (self._block_by_id(rule_id) for rule_id in rule_ids if rule_id not in found)
            found |= {each.rule.id: each for each in of_blocks if each is not None}
        return found

    def between(self, first: int, past: int) -> list[Record]:
        """Rules of no block with handles from `first` on and before `past`."""
        return self._records("WHERE handle >= ? AND handle < ?", (first, past))

    def _by_many(self, column: str, values: Sequence[object]) -> Iterator[Record]:
        for at in range(0, len(values), 500):
            some = values[at : at + 500]
            yield from self._records(f"WHERE {column} IN ({','.join('?' * len(some))})", some)

    def by_handles(self, handles: Sequence[int]) -> list[Record]:
        """Those that there are, in no order."""
        found = list(self._by_many("handle", handles))
        loose = {each.handle for each in found}
        of_blocks: dict[Block, list[int]] = {}
        for handle in handles:
            block = self._block_of(handle)
            if block is not None and handle not in loose:
                of_blocks.setdefault(block, []).append(handle - block.first_handle)
        for block, numbers in of_blocks.items():
            found += self._block_records(block, numbers)
        return found

    def _block_records(self, block: Block, numbers: Sequence[int]) -> list[Record]:
        if len(numbers) <= _FEW:
            return [record for each in numbers if (record := self._block_record(block, each)) is not None]
        left = self.block_rules(block)
        at = np.flatnonzero(np.isin(left.numbers, numbers))
        return list(BlockRules(block, left.numbers[at], left.lengths[at], left.addresses[at]).records())

    def with_family(self) -> list[Record]:
        """Enabled rules that are narrowed to one IP version."""
        return self._records("WHERE enabled AND json_extract(fields, '$.family') IS NOT NULL")

    def ids_of(self, handles: Sequence[int]) -> dict[int, str]:
        """Ids of the rules that exist, by handle."""
        return {each.handle: each.rule.id for each in self.by_handles(handles)}

    def loose(self, chunk: int = 5000, connection: sqlite3.Connection | None = None) -> Iterator[Record]:
        """Rules that are in no block, in order of handle, that is of creation."""
        last = 0
        while some := self._records("WHERE handle > ? ORDER BY handle LIMIT ?", (last, chunk), connection):
            yield from some
            last = some[-1].handle

    def all(self) -> Iterator[Record]:
        """Every rule in order of handle."""
        return self._merged(self._blocks, None)

    def _merged(self, blocks: Sequence[Block], connection: sqlite3.Connection | None) -> Iterator[Record]:
        of_blocks = (each for block in blocks for each in self.block_rules(block, connection).records())
        return heapq.merge(self.loose(connection=connection), of_blocks, key=lambda each: each.handle)

    def at_one_moment(self) -> tuple[int, Iterator[Record]]:
        """The durable revision, and every rule of it in order of handle, read as they are asked for: changes go on
        meanwhile. Little is in memory, however many there are."""
        connection = self.own_connection()
        with _failures("reading the rules"):
            connection.execute("BEGIN")
            query = "SELECT value FROM meta WHERE key = 'revision'"
            revision = int(connection.execute(query).fetchone()[0])  # from here on it is that moment
            blocks = self._load_blocks(connection)

        def records() -> Iterator[Record]:
            try:
                yield from self._merged(blocks, connection)
            finally:
                connection.close()

        return revision, records()

    def page(
        self, query: RuleQuery, offset: int, limit: int, among: Sequence[int] | None
    ) -> tuple[list[Record], int]:
        """Records in order of creation and how many there are in all. `among`: only these handles."""
        if among is not None:
            return self._page_among(query, offset, limit, among)
        clauses, parameters = _conditions(query)
        records: list[Record] = []
        total = first = 0
        for block in [each for each in self._blocks if _block_fits(each, query)]:
            skip = max(0, offset - total)
            found, count = self._loose_page(
                clauses, parameters, first, block.first_handle, skip, limit - len(records)
            )
            records, total, first = records + found, total + count, block.first_handle
            count = self._left(block)
            if total + count > offset and len(records) < limit:
                records += self._block_page(block, max(0, offset - total), limit - len(records))
            total += count
        skip = max(0, offset - total)
        found, count = self._loose_page(clauses, parameters, first, None, skip, limit - len(records))
        return records + found, total + count

    def enabled_since(self, query: RuleQuery, moment: float) -> npt.NDArray[np.int64]:
        """Handles, sorted, of enabled rules that fit a query and were made before a moment."""
        clauses, parameters = _conditions(query)
        where = " AND ".join([*clauses, "enabled", "created_at <= ?"])
        with _failures("reading the rules"):
            rows = self._reader.execute(f"SELECT handle FROM rules WHERE {where}", [*parameters, moment])
            parts = [np.array(rows.fetchall(), np.int64).reshape(-1)]
            for block in self._blocks:
                if _block_fits(block, query) and block.created_at <= moment:
                    end = block.first_handle + block.count
                    gone = np.array(self._gone(block.first_handle, end), np.int64)
                    left = np.ones(block.count, np.bool_)
                    left[gone - block.first_handle] = False
                    parts.append(block.first_handle + np.flatnonzero(left))
        return np.sort(np.concatenate(parts))

    def _loose_page(
        self, clauses: list[str], parameters: list[object], first: int, end: int | None, skip: int, limit: int
    ) -> tuple[list[Record], int]:
        """Of the handles from `first` up to `end`: those after the first `skip`, and how many there are."""
        clauses = [*clauses, "handle >= ?", *(["handle < ?"] if end is not None else [])]
        parameters = [*parameters, first, *([end] if end is not None else [])]
        where = f"WHERE {' AND '.join(clauses)}"
        with _failures("reading the rules"):
            count = int(self._reader.execute(f"SELECT count(*) FROM rules {where}", parameters).fetchone()[0])
        if limit <= 0 or skip >= count:
            return [], count
        return self._records(f"{where} ORDER BY handle LIMIT ? OFFSET ?", [*parameters, limit, skip]), count

    def _page_among(
        self, query: RuleQuery, offset: int, limit: int, among: Sequence[int]
    ) -> tuple[list[Record], int]:
        clauses, parameters = _conditions(query)
        clauses.append(f"handle IN ({','.join(map(str, among))})")
        records = self._records(f"WHERE {' AND '.join(clauses)}", parameters)
        for handle in among:
            block = self._block_of(handle)
            if block is not None and _block_fits(block, query):
                record = self._block_record(block, handle - block.first_handle)
                records += [record] if record else []
        records.sort(key=lambda each: each.handle)
        return records[offset : offset + limit], len(records)

    def _left(self, block: Block) -> int:
        end = block.first_handle + block.count
        query = "SELECT count(*) FROM gone WHERE handle >= ? AND handle < ?"
        with _failures("reading the rules"):
            return block.count - int(self._reader.execute(query, (block.first_handle, end)).fetchone()[0])

    def _block_page(self, block: Block, skip: int, limit: int) -> list[Record]:
        """Those that are left, after the first `skip` of them."""
        gone = np.array(self._gone(block.first_handle, block.first_handle + block.count), np.int64)
        # Rank among those that are left of the first that stands behind each gone one.
        left_before = np.sort(gone) - block.first_handle - np.arange(len(gone))
        first = skip + int(np.searchsorted(left_before, skip, "right"))
        end = skip + limit + int(np.searchsorted(left_before, skip + limit - 1, "right"))
        end = min(end, block.count)
        missing = set((gone - block.first_handle).tolist())
        size = 4 if block.version == 4 else 16
        query = "SELECT substr(lengths, ?, ?), substr(addresses, ?, ?) FROM blocks WHERE first_handle = ?"
        parameters = (first + 1, end - first, first * size + 1, (end - first) * size, block.first_handle)
        with _failures("reading the rules"):
            lengths, addresses = self._reader.execute(query, parameters).fetchone()
        return [
            block.record(number, addresses[at * size : (at + 1) * size], lengths[at])
            for at, number in enumerate(range(first, end))
            if number not in missing
        ]

    def disabled(self) -> list[Record]:
        return self._records("WHERE NOT enabled")

    def count_disabled(self) -> int:
        with _failures("reading the rules"):
            row = self._reader.execute("SELECT count(*) FROM rules WHERE NOT enabled").fetchone()
        return int(row[0])

    def measured(self, limit: int) -> tuple[list[Record], int]:
        """The first rules that ask for metrics of their own by the label metrics=true, and how many do in all."""
        with _failures("reading the rules"):
            row = self._reader.execute(f"SELECT count(*) FROM rules WHERE {_MEASURED}").fetchone()
        return self._records(f"WHERE {_MEASURED} ORDER BY handle LIMIT ?", (limit,)), int(row[0])

    def count(self) -> int:
        with _failures("reading the rules"):
            loose = int(self._reader.execute("SELECT count(*) FROM rules").fetchone()[0])
        return loose + sum(self._left(block) for block in self._blocks)

    def expired(self, now: float, limit: int) -> list[Record]:
        return self._records("WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (now, limit))

    def next_expiry(self) -> float | None:
        with _failures("reading the rules"):
            row = self._reader.execute(
                "SELECT min(expires_at) FROM rules WHERE expires_at IS NOT NULL"
            ).fetchone()
        return None if row[0] is None else float(row[0])

    def hits(self, handles: Sequence[int]) -> dict[int, Hits]:
        found = {}
        with _failures("reading counters"):
            for at in range(0, len(handles), 500):
                some = handles[at : at + 500]
                marks = ",".join("?" * len(some))
                rows = self._reader.execute(f"SELECT * FROM hits WHERE handle IN ({marks})", some)
                found.update({row[0]: Hits(*row[1:]) for row in rows})
        return found

    def interface_totals(self) -> list[InterfaceTotal]:
        with _failures("reading counters"):
            return [InterfaceTotal(*row) for row in self._reader.execute("SELECT * FROM interface_hits")]

    def interfaces(self) -> dict[str, InterfaceRequest]:
        with _failures("reading the interfaces"):
            rows = self._reader.execute("SELECT * FROM interfaces").fetchall()
        return {
            name: InterfaceRequest(name, bool(attach), mode, bool(ingress), bool(egress))
            for name, attach, mode, ingress, egress in rows
        }


def _record(row: tuple[int, str, str, float, float, float | None]) -> Record:
    handle, rule_id, fields, created_at, updated_at, expires_at = row
    try:
        rule = decode(rule_id, fields, expires_at)
    except (ValueError, AttributeError, FirewallError) as error:
        raise StoreFailed(
            f"the stored rule {rule_id!r} is damaged: {error}", "restore a backup of the state directory"
        ) from error
    return Record(handle, rule, created_at, updated_at)


def _block_fits(block: Block, query: RuleQuery) -> bool:
    return (
        query.direction in (None, block.direction)
        and query.action in (None, block.action)
        and query.enabled is not False
        and query.label is None
    )


def _conditions(query: RuleQuery) -> tuple[list[str], list[object]]:
    clauses: list[str] = []
    parameters: list[object] = []
    for column, value in (
        ("direction", query.direction),
        ("action", query.action),
        ("enabled", query.enabled),
    ):
        if value is not None:
            clauses.append(f"{column} = ?")
            parameters.append(value)
    if query.label is not None:
        key, wanted = query.label
        asked = "key = ?" if wanted is None else "key = ? AND value = ?"
        clauses.append(f"EXISTS (SELECT 1 FROM json_each(fields, '$.labels') WHERE {asked})")
        parameters += [key] if wanted is None else [key, wanted]
    return clauses, parameters
