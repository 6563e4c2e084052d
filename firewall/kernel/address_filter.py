"""The filter before the address tables: its bits in the kernel (firewall/presence.py says which).

Owns that it has the bits of every entry of the tables, at every moment: they are set before an entry is written, and
what deleted entries leave behind goes when the filter is made anew from all that are there. It grows in place: more
of its words come into use once the bits of all entries stand in them too.

Whose process ends in the middle of a step leaves bits too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from firewall.datapath import Key
from firewall.kernel.bpf import Records
from firewall.kernel.maps import PinnedMaps
from firewall.presence import MASK_MIN, Words, marks, marks_of_one, mask_for, set_marks

# Keys of all entries of the tables, in parts, each with its IP version.
AllKeys = Callable[[], Iterable[tuple[int, Records]]]
_KEYS_A_PART = 65_536  # some 30 ms


class _Renewal(NamedTuple):
    """`exact`: the bits of the entries that it has met, and of those that came meanwhile; `parts`: the others."""

    exact: Words
    parts: Iterator[tuple[int, Records]]


class AddressFilter:
    """Not thread-safe: one writer."""

    def __init__(self, maps: PinnedMaps, all_keys: AllKeys, wait: Callable[[], None]) -> None:
        """`wait`: until no packet is left that was being judged."""
        self._control = maps.control
        self._words: Words = maps.arrays["address_filter"]["bits"]
        self._all_keys = all_keys
        self._wait = wait
        self._left_behind = 0
        self._renewal: _Renewal | None = None

    @property
    def _mask(self) -> int:
        return int(self._control["filter_mask"])

    def mark(self, version: int, keys: Records) -> None:
        """Call before entries of these keys are written."""
        found = marks(version, keys, self._mask)
        for words in self._written:
            set_marks(words, found)

    def mark_one(self, key: Key) -> None:
        for place, bits in marks_of_one(*key, self._mask):
            for words in self._written:
                words[place] |= np.uint64(bits)

    @property
    def _written(self) -> list[Words]:
        """What comes during a renewal may come behind where it has looked."""
        return [self._words] if self._renewal is None else [self._words, self._renewal.exact]

    def leave(self, count: int) -> None:
        """Call after so many entries were deleted."""
        self._left_behind += count

    def reserve(self, entries: int) -> None:
        """So many in all. Raises KernelRefused and leaves all as it was for packets."""
        mask = mask_for(entries)
        if mask <= self._mask:
            return
        self.forget_renewal()
        self._mark_all(self._words, mask)
        self._control["filter_mask"] = mask
        self._wait()
        self.renew()

    def complete(self) -> None:
        """Sets the bits of all entries, whatever there was."""
        if not self._mask:
            self._control["filter_mask"] = MASK_MIN
        self._mark_all(self._words, self._mask)

    def renew(self) -> None:
        """Leaves just the bits of the entries. Words lose bits that nobody needs, by whatever stores."""
        self._begin_renewal()
        while self._renewal is not None:
            self._renew_part(self._renewal)

    def renew_in_parts(self) -> None:
        """The same where deleted entries left many bits behind, a part at each call: all of a large table would take
        longer than others shall wait."""
        if self._renewal is None and self._left_behind > self._mask:
            self._begin_renewal()
        if self._renewal is not None:
            self._renew_part(self._renewal)

    def forget_renewal(self) -> None:
        """Call before another table takes the place of one: it begins again."""
        if self._renewal is not None:
            self._renewal, self._left_behind = None, self._mask + 1

    def _begin_renewal(self) -> None:
        self._renewal = _Renewal(np.zeros(len(self._words), np.uint64), iter(self._all_keys()))
        self._left_behind = 0

    def _renew_part(self, renewal: _Renewal) -> None:
        looked_at = 0
        try:
            for version, keys in renewal.parts:
                set_marks(renewal.exact, marks(version, keys, self._mask))
                looked_at += len(keys)
                if looked_at >= _KEYS_A_PART:
                    return
        except BaseException:
            self.forget_renewal()
            raise
        self._words[:] = renewal.exact
        self._renewal = None

    def _mark_all(self, words: Words, mask: int) -> None:
        for version, keys in self._all_keys():
            set_marks(words, marks(version, keys, mask))
