"""Entries of the address tables that are made ready to go together: none of them is met from one store of the epoch on.

Owns which these are, and how far they are. An entry that is ready has an epoch far ahead in `since`, no rank behind it
and its own before it (bpf/layout.h, struct address_entry): packets meet it as ever, whatever other changes advance the
epoch by, until the epoch is set to just that. So a million of them, written part by part over seconds, go together.

An entry that somebody wrote otherwise meanwhile is no longer ready and is left alone: each step looks at what is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from firewall.address_index import Keys
from firewall.datapath import Entries
from firewall.kernel.address_table import AddressTable

_FAR = 1 << 32  # epochs that other changes do not come to meanwhile


class Departure:
    """`end`: the epoch with which they go."""

    def __init__(self, epoch: int) -> None:
        self.end = epoch + _FAR & ~1
        self._parts: list[Entries] = []
        self._to_appoint: deque[int] = deque()  # numbers of parts
        self._to_vanish: deque[int] = deque()
        self._is_waited_for = False
        self.has_fallen = False

    @property
    def is_at_rest(self) -> bool:
        """Whether it waits for its moment."""
        return not self._to_appoint and not self._to_vanish and not self.has_fallen

    def add(self, entries: Entries) -> None:
        """The first step is done by whoever adds them, for all before the other two."""
        if len(entries):
            self._to_appoint.append(len(self._parts))
            self._parts.append(entries)
            self._is_waited_for = False

    def go_on(self, tables: Mapping[int, AddressTable], wait: Callable[[], None]) -> bool:
        """With the next part; whether that was all."""
        if not self._is_waited_for:
            wait()
            self._is_waited_for = True
        if self._to_appoint:
            part = self._parts[self._to_appoint[0]]
            tables[part.version].appoint(part, self.end)
            self._to_vanish.append(self._to_appoint.popleft())
            self._is_waited_for = bool(self._to_appoint)
        elif self._to_vanish:
            part = self._parts[self._to_vanish[0]]
            tables[part.version].vanish(part, self.end)
            self._to_vanish.popleft()
        return not self._to_appoint and not self._to_vanish

    def leave_out(self, entries: Entries) -> Entries:
        """Those of some entries that are among these, and are not any more."""
        found = np.zeros(len(entries), np.bool_)
        for number, part in enumerate(self._parts):
            if part.version != entries.version or not len(part) or not len(entries):
                continue
            is_here = np.zeros(len(entries), np.bool_)
            if len(entries) <= len(part):  # the fewer are looked for among the more
                at, is_here = _places(part, entries.keys)
                places = at[is_here]
            else:
                at, is_mine = _places(entries, part.keys)
                places = np.flatnonzero(is_mine)
                is_here[at[is_mine]] = True
            if is_here.any():
                stays = np.ones(len(part), np.bool_)
                stays[places] = False
                self._parts[number] = part.only(stays)
                found |= is_here
        return entries.only(found)


def _places(entries: Entries, keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each key would stand among sorted entries, and whether it does."""
    at = np.searchsorted(entries.keys, keys).clip(max=len(entries) - 1)
    return at, np.asarray(entries.keys[at] == keys)
