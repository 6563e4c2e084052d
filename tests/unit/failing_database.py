"""A store whose database fails at a statement, as a full or broken disk would."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from firewall.store import Store


class FailingConnection:
    """All of a connection, but statements that start with `statement` raise."""

    def __init__(self, connection: sqlite3.Connection, statement: str) -> None:
        self._connection = connection
        self._statement = statement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def _check(self, sql: str) -> None:
        if sql.startswith(self._statement):
            raise sqlite3.OperationalError("disk I/O error")

    def execute(self, sql: str, *parameters: Any) -> Any:
        self._check(sql)
        return self._connection.execute(sql, *parameters)

    def executemany(self, sql: str, rows: Any) -> Any:
        self._check(sql)
        return self._connection.executemany(sql, rows)


@contextmanager
def fail_on(store: Store, statement: str) -> Iterator[None]:
    """Inside, the store's writer fails at statements that start so."""
    connection = store._writer
    store._writer = FailingConnection(connection, statement)  # type: ignore[assignment]
    try:
        yield
    finally:
        store._writer = connection
