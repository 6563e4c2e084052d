"""Entries by the million, in parts that are small enough to be worked on while others wait."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from firewall.address_index import Keys
from firewall.datapath import Entries

SIZE = 1 << 16


class Parts:
    """Each part is sorted. Those that are empty are kept: a part has its number for good."""

    def __init__(self) -> None:
        self._parts: list[Entries] = []

    def add(self, entries: Entries) -> None:
        """In as many parts as they need."""
        for begin in range(0, len(entries), SIZE):
            self._parts.append(entries.at(slice(begin, begin + SIZE)))

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> Entries:
        return self._parts[number]

    def count(self, version: int) -> int:
        return sum(len(each) for each in self._parts if each.version == version)

    def drop_last(self) -> None:
        self._parts.pop()

    def has(self, entries: Entries) -> npt.NDArray[np.bool_]:
        """Of some entries, sorted, which are among these."""
        found = np.zeros(len(entries), np.bool_)
        for part in self._parts:
            if part.version == entries.version and len(part) and len(entries):
                found |= _without(part, entries)[1]
        return found

    def leave_out(self, entries: Entries) -> Entries:
        """Those of some entries, sorted, that are among these, and are not any more."""
        found = np.zeros(len(entries), np.bool_)
        for number, part in enumerate(self._parts):
            if part.version == entries.version and len(part) and len(entries):
                self._parts[number], mine = _without(part, entries)
                found |= mine
        return entries.only(found)


def _without(part: Entries, entries: Entries) -> tuple[Entries, npt.NDArray[np.bool_]]:
    """A part without some entries, and which of these it had."""
    if len(entries) <= len(part):  # the fewer are looked for among the more
        at, is_here = _places(part, entries.keys)
        places = at[is_here]
    else:
        at, is_mine = _places(entries, part.keys)
        places = np.flatnonzero(is_mine)
        is_here = np.zeros(len(entries), np.bool_)
        is_here[at[is_mine]] = True
    if not len(places):
        return part, is_here
    stays = np.ones(len(part), np.bool_)
    stays[places] = False
    return part.only(stays), is_here


def _places(entries: Entries, keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each key would stand among sorted entries, and whether it does."""
    at = np.searchsorted(entries.keys, keys).clip(max=len(entries) - 1)
    return at, np.asarray(entries.keys[at] == keys)
