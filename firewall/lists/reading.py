"""A list of addresses as bytes, in any of the formats, to columns: `ListReader(...)`, `feed()` part by part, `end()`.

Owns which format a list has: as it was told, else by its media type, its name or how it begins. What is no list at
all, such as a web page, is refused; nothing of it could be told from an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from firewall.errors import InvalidInput
from firewall.lists.collector import Collector, Manner, ReadList
from firewall.lists.csv_table import CsvTable
from firewall.lists.ipset import IpsetLines
from firewall.lists.lines import LineCutter, TakeLines
from firewall.lists.ndjson import NdjsonLines, SpamhausLines
from firewall.lists.nft import NftDocument
from firewall.lists.plain import PlainLines

FORMATS = ("plain", "ipset", "nft", "csv", "ndjson", "spamhaus")
_SEEN_BYTES = 1 << 14  # of a list, before its format is settled
_MEDIA_TYPES = {"text/csv": "csv", "application/x-ndjson": "ndjson", "application/jsonl": "ndjson"}
_ENDINGS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}
_IPSET = re.compile(rb"(create|add|-N|-A|flush|--create|--add) +\S+ ")
_NOT_TEXT = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BOM = b"\xef\xbb\xbf"


class _Reader(Protocol):
    def feed(self, part: bytes) -> None: ...
    def end(self) -> None: ...


class ListReader:
    """Raises InvalidInput from `feed` and `end` where it cannot go on. Not for several threads at once."""

    def __init__(self, manner: Manner, form: str | None = None, media_type: str = "", name: str = "") -> None:
        """`form`: one of FORMATS, None to find out; `name`: of the file or the URL."""
        self._manner, self._form = manner, form
        if form is None:
            self._form = _MEDIA_TYPES.get(media_type) or next(
                (each for ending, each in _ENDINGS.items() if name.lower().endswith(ending)), None
            )
        self._seen = b""
        self._reader: _Reader | None = None
        self._check: Callable[[], None] = lambda: None

    def feed(self, part: bytes) -> None:
        if self._reader is not None:
            self._reader.feed(part)
            return
        self._seen += part
        if len(self._seen) >= _SEEN_BYTES:
            self._begin()

    def end(self) -> ReadList:
        if self._reader is None:
            self._begin()
        assert self._reader is not None
        self._reader.end()
        self._check()
        return self._collector.finish(self._form or "plain")

    def _begin(self) -> None:
        seen = self._seen.removeprefix(_BOM)
        refuse_what_is_no_list(seen)
        self._form = self._form or format_of(seen)
        self._collector = Collector(self._manner, "element" if self._form == "nft" else "line")
        self._reader = self._opened(self._form)
        self._seen = b""
        self._reader.feed(seen)

    def _opened(self, form: str) -> _Reader:
        collector = self._collector
        if form == "nft":
            return NftDocument(collector)
        if form == "spamhaus":
            lines = SpamhausLines(collector)
            self._check = lines.check_whole
            return LineCutter(lines.take)
        takers: dict[str, TakeLines] = {
            "plain": PlainLines(collector).take,
            "ipset": IpsetLines(collector).take,
            "csv": CsvTable(collector).take,
            "ndjson": NdjsonLines(collector).take,
        }
        return LineCutter(takers[form])


def refuse_what_is_no_list(begin: bytes) -> None:
    if begin.startswith(_NOT_TEXT) or b"\0" in begin:
        raise InvalidInput("the list is not text", "unpack it first", code="invalid_list")
    if begin.lstrip()[:14].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InvalidInput(
            "the list is a web page", "is this the address of the list itself?", code="invalid_list"
        )


def format_of(begin: bytes) -> str:
    """By the first line that is no comment."""
    for line in begin.splitlines():
        text = line.strip()
        if not text or text.startswith((b"#", b";")):
            continue
        if text.startswith(b"{"):
            return "nft" if b'"nftables"' in begin else "ndjson"
        if _IPSET.match(text):
            return "ipset"
        plain = re.split(rb"[#;]", text, maxsplit=1)[0]
        return "csv" if b"," in plain or b"\t" in plain.strip() else "plain"
    return "plain"


def read_list(content: bytes, manner: Manner, form: str | None = None, name: str = "") -> ReadList:
    reader = ListReader(manner, form, name=name)
    reader.feed(content)
    return reader.end()
