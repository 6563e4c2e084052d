"""Entries of the address tables that are made ready to go together: none of them is met from one store of the epoch on.

Owns which these are, and how far they are. An entry that is ready has an epoch far ahead in `since`, no rank behind it
and its own before it (bpf/layout.h, struct address_entry): packets meet it as ever, whatever other changes advance the
epoch by, until the epoch is set to just that. So a million of them, written part by part over seconds, go together.

An entry that somebody wrote otherwise meanwhile is no longer ready and is left alone: each step looks at what is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

from firewall.datapath import Entries
from firewall.kernel.address_table import AddressTable
from firewall.kernel.parts import Parts

_AT_ONCE = 4  # parts, as doom() got them
_FAR = 1 << 32  # epochs that other changes do not come to meanwhile


class Departure:
    """`end`: the epoch with which they go."""

    def __init__(self, epoch: int) -> None:
        self.end = epoch + _FAR & ~1
        self.has_fallen = False
        self._parts = Parts()
        self._to_appoint: deque[int] = deque()  # numbers of parts
        self._to_vanish: deque[int] = deque()
        self._is_waited_for = False

    @property
    def is_at_rest(self) -> bool:
        """Whether it waits for its moment."""
        return not self._to_appoint and not self._to_vanish and not self.has_fallen

    def add(self, entries: Entries) -> None:
        """The first step is done by whoever adds them, for all before the other two."""
        first = len(self._parts)
        self._parts.add(entries)
        self._to_appoint.extend(range(first, len(self._parts)))
        self._is_waited_for = False

    def leave_out(self, entries: Entries) -> Entries:
        """Those of some entries that are among these, and are not any more."""
        return self._parts.leave_out(entries)

    def still_met(self, entries: Entries) -> Entries:
        """Without those that have fallen."""
        return entries.only(~self._parts.has(entries)) if self.has_fallen else entries

    def go_on(self, tables: Mapping[int, AddressTable], wait: Callable[[], None]) -> bool:
        """With the next part; whether that was all."""
        if not self._is_waited_for:
            wait()
            self._is_waited_for = True
        if self._to_appoint:
            for number in _some(self._to_appoint):
                part = self._parts[number]
                tables[part.version].appoint(part, self.end)
                self._to_vanish.append(number)
            self._is_waited_for = bool(self._to_appoint)
        else:
            for number in _some(self._to_vanish):
                part = self._parts[number]
                tables[part.version].vanish(part, self.end)
        return not self._to_appoint and not self._to_vanish


def _some(numbers: deque[int]) -> Iterator[int]:
    """The first few, which are taken away each after what is done for it."""
    for _ in range(min(_AT_ONCE, len(numbers))):
        yield numbers[0]
        numbers.popleft()
