"""JSON, an entry a line: `{"address" | "cidr" | "ip": …, "ttl": …, "expires_at": …, "comment": …}`; and Spamhaus' DROP,
`{"cidr": …, "sblid": …}` with a line about the list itself at its end.

Owns the names that fields may have. Other fields are no fault: lists of others have them.
"""

from __future__ import annotations

from typing import Any

import orjson

from firewall.errors import InvalidInput
from firewall.lists.collector import Collector, Rows
from firewall.lists.lines import texts_of
from firewall.match import parse_duration
from firewall.rule import parse_time

ADDRESS_FIELDS = ("address", "cidr", "ip", "range", "network", "prefix", "value")
COMMENT_FIELDS = ("comment", "description", "reason", "sblid")


class NdjsonLines:
    """`metadata`: Spamhaus' last line, where there is one."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self.metadata: dict[str, Any] | None = None
        self.entries = 0

    def take(self, chunk: bytes, first: int) -> None:
        documents, now = self._documents(chunk, first), round(self._collector.now, 3)
        texts: list[str] = []
        numbers: list[int] = []
        ends: list[float | None] = []
        comments: list[str] = []
        for number, document in documents:
            try:
                if self._is_metadata(document):
                    continue
                text, end, comment = entry_of(document, now)
            except ValueError as error:
                self._collector.bad(number, str(error))
                continue
            texts.append(text)
            numbers.append(number)
            ends.append(end)
            comments.append(comment)
        self.entries += len(texts)
        self._collector.take(Rows(texts, numbers, ends, comments))

    def _documents(self, chunk: bytes, first: int) -> list[tuple[int, Any]]:
        lines = chunk.split(b"\n")[:-1]
        try:  # all at once, where each line is one document
            documents = orjson.loads(b"[" + b",".join(lines) + b"]")
            if len(documents) == len(lines):
                return list(enumerate(documents, first))
        except orjson.JSONDecodeError:
            pass
        found = []
        for number, text in enumerate(texts_of(chunk, first, self._collector.bad), first):
            if not text.strip() or text.lstrip().startswith("#"):
                continue
            try:
                found.append((number, orjson.loads(text)))
            except orjson.JSONDecodeError as error:
                self._collector.bad(number, f"is not JSON: {error.msg} at column {error.colno}")
        return found

    def _is_metadata(self, document: Any) -> bool:
        if isinstance(document, dict) and document.get("type") == "metadata":
            self.metadata = document
            return True
        return False


def entry_of(document: Any, now: float) -> tuple[str, float | None, str]:
    """Address, end and comment of an entry. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError('must be an object such as {"address": "203.0.113.7"}')
    address: Any = None
    for name in ADDRESS_FIELDS:
        if name in document:
            address = document[name]
            break
    if not isinstance(address, str):
        raise ValueError(f"has no address: it is in one of {', '.join(ADDRESS_FIELDS)}")
    comment: Any = ""
    for name in COMMENT_FIELDS:
        if comment := document.get(name):
            break
    return address, _end(document, now), comment if isinstance(comment, str) else ""


def _end(document: dict[str, Any], now: float) -> float | None:
    if (ttl := document.get("ttl")) is not None:
        return now + parse_duration(ttl)
    if (moment := document.get("expires_at")) is not None:
        return parse_time(moment)
    return None


class SpamhausLines(NdjsonLines):
    """The same, and a list that breaks off before its end is told by the last line that it lacks."""

    def check_whole(self) -> None:
        """Raises InvalidInput."""
        if self.metadata is None:
            detail = "the list ends before its last line, the one about the list itself: it is not whole"
            raise InvalidInput(detail, "fetch it again, or read it as ndjson", code="invalid_list")
        records = self.metadata.get("records")
        if isinstance(records, int) and records > self.entries:
            detail = f"the list says that it has {records:,} entries, and only {self.entries:,} are there"
            raise InvalidInput(detail, "fetch it again, or read it as ndjson", code="invalid_list")
