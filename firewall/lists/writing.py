"""Entries of a set as text that is read again: plain, NDJSON, or what `ipset restore` takes.

Owns these three ways. Times are told so that a list read later means the same moment, where the format can say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

import orjson

from firewall.address import Prefix
from firewall.rule import format_time

WRITTEN = ("plain", "ndjson", "ipset")
MEDIA_TYPES = {"plain": "text/plain", "ndjson": "application/x-ndjson", "ipset": "text/plain"}
_AT_ONCE = 4096
_IPSET_MOST_S = (1 << 31) // 1000  # ipset's timeouts count in milliseconds


class Entry(Protocol):
    """`expires_at`: seconds since 1970, None for one that stays."""

    @property
    def prefix(self) -> Prefix: ...
    @property
    def expires_at(self) -> float | None: ...
    @property
    def comment(self) -> str | None: ...


def written(form: str, name: str, entries: Iterable[Entry], now: float) -> Iterator[bytes]:
    """In parts of some thousand entries. `name`: of the set."""
    line: Callable[[Entry], str]
    if form == "ipset":
        yield _ipset_head(name).encode()
        line = _IpsetLine(name, now)
    else:
        line = _plain_line if form == "plain" else _ndjson_line
    left = iter(entries)
    while some := list(islice(left, _AT_ONCE)):
        yield "".join(map(line, some)).encode()


def _plain_line(entry: Entry) -> str:
    """A comment must stay on its line."""
    comment = " ".join(entry.comment.split()) if entry.comment else ""
    return f"{entry.prefix} # {comment}\n" if comment else f"{entry.prefix}\n"


def _ndjson_line(entry: Entry) -> str:
    fields: dict[str, object] = {"address": str(entry.prefix)}
    if entry.expires_at is not None:
        fields["expires_at"] = format_time(entry.expires_at)
    if entry.comment:
        fields["comment"] = entry.comment
    return orjson.dumps(fields).decode() + "\n"


def _ipset_names(name: str) -> dict[int, str]:
    """A set of ipset is of one family and has 31 characters."""
    return {4: name[:29], 6: f"{name[:27]}-6"}


def _ipset_head(name: str) -> str:
    families = ((4, "inet"), (6, "inet6"))
    options = "hashsize 1024 maxelem 4194304 timeout 0 comment"
    return "".join(
        f"create {_ipset_names(name)[version]} hash:net family {family} {options}\n"
        for version, family in families
    )


class _IpsetLine:
    def __init__(self, name: str, now: float) -> None:
        self._names, self._now = _ipset_names(name), now

    def __call__(self, entry: Entry) -> str:
        left = "0"
        if entry.expires_at is not None:
            left = str(min(_IPSET_MOST_S, max(1, round(entry.expires_at - self._now))))
        comment = " ".join((entry.comment or "").replace('"', "'").split())
        told = f' comment "{comment[:255]}"' if comment else ""
        add = f"add {self._names[entry.prefix.version]}"
        return "".join(f"{add} {each} timeout {left}{told}\n" for each in _ipset_prefixes(entry.prefix))


def _ipset_prefixes(prefix: Prefix) -> list[Prefix]:
    """ipset has no prefixes of length 0: they are two halves."""
    if prefix.length:
        return [prefix]
    half = 1 << (31 if prefix.version == 4 else 127)
    return [Prefix(prefix.version, 0, 1), Prefix(prefix.version, half, 1)]
