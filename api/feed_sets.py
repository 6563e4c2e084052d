"""Sets for feeds, as the enforcer has them, changed in the writer thread.

Owns that way alone: feeds.sets says what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial

from api.running import Running
from feeds.sets import Applied, is_from_outside
from firewall.address import Prefix
from firewall.address_list import PrefixColumns
from firewall.enforcer import Enforcer
from firewall.errors import Conflict, NotFound
from firewall.set_changes import API
from firewall.set_entries import EntryColumns
from firewall.view import EntriesOutcome


class FirewallSets:
    def __init__(self, running: Running) -> None:
        self._running = running

    @property
    def _firewall(self) -> Enforcer:
        return self._running.enforcer

    async def claim(self, name: str, source: str, description: str) -> None:
        await self._running.change(partial(_claim, self._firewall, name, source, description))

    async def release(self, kept: Collection[str]) -> list[str]:
        return await self._running.change(partial(_release, self._firewall, kept))

    async def replace(self, name: str, columns: Sequence[EntryColumns], source: str) -> Applied:
        return await self._change(partial(self._firewall.replace_entries, name, columns, source))

    async def add(self, name: str, columns: Sequence[EntryColumns], source: str) -> Applied:
        return await self._change(partial(self._firewall.add_entries, name, columns, source))

    async def delete(self, name: str, columns: Sequence[EntryColumns], source: str) -> Applied:
        return await self._change(partial(self._firewall.delete_entries, name, columns, source))

    async def _change(self, call: Callable[[], EntriesOutcome]) -> Applied:
        outcome = await self._running.change(call)
        return Applied(outcome.added, outcome.removed, outcome.refreshed, outcome.unchanged)

    async def size(self, name: str) -> int | None:
        return self._firewall.set_sizes().get(name)

    async def prefixes(self, name: str) -> list[PrefixColumns]:
        try:
            return await asyncio.to_thread(self._firewall.prefixes_of_set, name)
        except NotFound:
            return []

    def never_drop(self) -> Sequence[Prefix]:
        return self._firewall.never_drop()


def _claim(firewall: Enforcer, name: str, source: str, description: str) -> None:
    """Raises Conflict where it is somebody's, or has entries that somebody made."""
    try:
        present = firewall.set(name)
    except NotFound:
        firewall.put_set(name, description, source)
        return
    if present.source == source:
        return
    if present.source != API or present.entries:
        whose = "has entries of its own" if present.source == API else f"is filled by {present.source}"
        raise Conflict(
            f"set {name!r} {whose}",
            "name another set, or empty this one first: its entries would be lost",
            code="set_managed",
        )
    firewall.give_set(name, source)


def _release(firewall: Enforcer, kept: Collection[str]) -> list[str]:
    ours = [each for each in firewall.sets() if is_from_outside(each.source)]
    freed = [each.name for each in ours if each.source not in kept]
    for name in freed:
        firewall.give_set(name, API)
    return freed
