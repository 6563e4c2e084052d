"""Tables with separators: the column of addresses is found by its header, or by what is in it.

Owns which column is which. Where there is a header, comments and times are read too. Each line is one row.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

from firewall.lists.collector import Collector, Rows
from firewall.lists.lines import texts_of
from firewall.lists.ranges import prefixes_of
from firewall.match import parse_duration
from firewall.rule import parse_time

_SEPARATORS = (",", "\t", ";", "|")
_ADDRESSES = (
    "address", "cidr", "ip", "network", "prefix", "range", "ip_address", "ip_range", "ipaddress", "src_ip", "dst_ip",
    "source_ip", "indicator", "value", "ioc", "subnet", "netblock",
)  # fmt: skip
_STARTS, _ENDS = ("start", "start_ip", "first", "from"), ("end", "end_ip", "last", "to")
_COMMENTS = ("comment", "comments", "description", "reason", "note", "sblid", "malware", "threat")


@dataclass(frozen=True)
class _Columns:
    """Where things stand in a row. `last`: of a range that begins in `address`."""

    address: int
    last: int | None = None
    comment: int | None = None
    ttl: int | None = None
    expires_at: int | None = None


class CsvTable:
    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._separator = ""
        self._header: list[str] | None = None
        self._columns: _Columns | None = None

    def take(self, chunk: bytes, first: int) -> None:
        numbers, lines = [], []
        for number, line in enumerate(texts_of(chunk, first, self._collector.bad), first):
            text = line.strip(" \r\ufeff")
            if text and not text.startswith(("#", ";")):
                numbers.append(number)
                lines.append(text)
        if not lines:
            return
        if not self._separator:
            header = lines[0]
            self._separator = max(_SEPARATORS, key=header.count)
        self._rows(numbers, lines)

    def _rows(self, numbers: list[int], lines: list[str]) -> None:
        texts: list[str] = []
        kept: list[int] = []
        ends: list[float | None] = []
        comments: list[str] = []
        for number, line in zip(numbers, lines, strict=True):
            try:
                # One line at a time: a quote that is never closed must not eat all that follows.
                cells = [cell.strip() for cell in next(csv.reader((line,), delimiter=self._separator), [])]
                if self._columns is None and not self._settle(cells):
                    continue
                assert self._columns is not None
                entry = self._entry(self._columns, cells)
            except (csv.Error, ValueError) as error:
                self._collector.bad(number, str(error))
                continue
            kept.append(number)
            texts.append(entry[0])
            ends.append(entry[1])
            comments.append(entry[2])
        self._collector.take(Rows(texts, kept, ends, comments))

    def _settle(self, cells: Sequence[str]) -> bool:
        """Whether this row is an entry already. Raises ValueError where no column of addresses is to be seen."""
        listed = next((at for at, cell in enumerate(cells) if _is_entry(cell)), None)
        if listed is None and self._header is None:
            self._header = [cell.lower().lstrip("\ufeff").replace(" ", "_") for cell in cells]
            address, last = self._at(_ADDRESSES), None
            if address is None and (start := self._at(_STARTS)) is not None:
                address, last = start, self._at(_ENDS)
            if address is not None:
                self._columns = self._told(address, last)
            return False
        if listed is None:
            raise ValueError("no column of this row holds an address")
        self._columns = self._told(listed, None)
        return True

    def _told(self, address: int, last: int | None) -> _Columns:
        return _Columns(
            address,
            last,
            self._at(_COMMENTS),
            self._at(("ttl", "timeout")),
            self._at(("expires_at", "expires")),
        )

    def _at(self, names: Sequence[str]) -> int | None:
        header = self._header or []
        return next((header.index(name) for name in names if name in header), None)

    def _entry(self, columns: _Columns, cells: Sequence[str]) -> tuple[str, float | None, str]:
        """Address, end and comment. Raises ValueError."""
        text = _cell(cells, columns.address)
        if not text:
            raise ValueError(f"has no column {columns.address + 1}, where the addresses are")
        if columns.last is not None and (last := _cell(cells, columns.last)):
            text = f"{text}-{last}"
        end: float | None = None
        if ttl := _cell(cells, columns.ttl):
            end = round(self._collector.now + parse_duration(ttl), 3)
        elif moment := _cell(cells, columns.expires_at):
            end = parse_time(moment)
        return text, end, _cell(cells, columns.comment)


def _cell(cells: Sequence[str], at: int | None) -> str:
    return cells[at] if at is not None and at < len(cells) else ""


def _is_entry(text: str) -> bool:
    if not text or text.isdecimal():
        return False
    try:
        return bool(prefixes_of(text).prefixes)
    except ValueError:
        return False
