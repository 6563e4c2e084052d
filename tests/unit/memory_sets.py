"""Sets as feeds see them, in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from feeds.sets import Applied
from firewall.address import Prefix
from firewall.address_list import PrefixColumns
from firewall.errors import Conflict, FirewallError
from firewall.lists.prefix_text import parse_texts
from firewall.set_entries import EntryColumns

Entries = dict[Prefix, tuple[float, str]]


class MemorySets:
    """`entries`: by set, of each prefix its end and its comment. `failing`: what the next change fails with."""

    def __init__(self) -> None:
        self.entries: dict[str, Entries] = {}
        self.sources: dict[str, str] = {}
        self.spared: list[Prefix] = []
        self.changes = 0
        self.failing: FirewallError | None = None

    def addresses(self, name: str) -> list[str]:
        return sorted(map(str, self.entries.get(name, {})))

    async def claim(self, name: str, source: str, description: str) -> None:
        if self.sources.get(name) == "api" and not self.entries.get(name):
            del self.sources[name]
        self._set(name, source)
        self.changes -= 1

    async def release(self, kept: Collection[str]) -> list[str]:
        freed = [name for name, source in self.sources.items() if source not in kept and source != "api"]
        self.sources.update(dict.fromkeys(freed, "api"))
        return freed

    def _set(self, name: str, source: str) -> Entries:
        if self.failing is not None:
            raise self.failing
        if self.sources.setdefault(name, source) != source:
            raise Conflict(f"the set {name} is {self.sources[name]}'s", code="set_managed")
        self.changes += 1
        return self.entries.setdefault(name, {})

    async def replace(self, name: str, columns: Sequence[EntryColumns], source: str) -> Applied:
        before, after = dict(self._set(name, source)), rows(columns)
        self.entries[name] = after
        added, removed = len(after.keys() - before.keys()), len(before.keys() - after.keys())
        return Applied(added, removed, 0, len(after) - added)

    async def add(self, name: str, columns: Sequence[EntryColumns], source: str) -> Applied:
        there, come = self._set(name, source), rows(columns)
        added = len(come.keys() - there.keys())
        there.update(come)
        return Applied(added, 0, len(come) - added)

    async def delete(self, name: str, columns: Sequence[EntryColumns], source: str) -> Applied:
        there = self._set(name, source)
        gone = [each for each in rows(columns) if there.pop(each, None) is not None]
        return Applied(0, len(gone))

    async def size(self, name: str) -> int | None:
        return len(self.entries[name]) if name in self.entries else None

    async def prefixes(self, name: str) -> list[PrefixColumns]:
        parsed = parse_texts(list(map(str, self.entries.get(name, {})))) or []
        return [PrefixColumns(each.version, each.lengths, each.addresses) for each in parsed]

    def never_drop(self) -> Sequence[Prefix]:
        return self.spared


def rows(columns: Sequence[EntryColumns]) -> Entries:
    found: Entries = {}
    for each in columns:
        for at in range(len(each)):
            address = int.from_bytes(each.prefixes.addresses[at].tobytes(), "big")
            end = 0.0 if each.expires_at is None else float(each.expires_at[at])
            comment = "" if each.comments is None else each.comments[at]
            found[Prefix(each.version, address, int(each.prefixes.lengths[at]))] = (end, comment)
    return found
