"""The filter before the address tables: its bits in the kernel (firewall/presence.py says which).

Owns that it has the bits of every entry of the tables, at every moment: they are set before an entry is written, and
what deleted entries leave behind goes when the filter is made anew from all that are there. It grows in place: more
of its words come into use once the bits of all entries stand in them too.

Whose process ends in the middle of a step leaves bits too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from firewall.datapath import Key
from firewall.kernel.bpf import Records
from firewall.kernel.maps import PinnedMaps
from firewall.presence import MASK_MIN, Words, marks, marks_of_one, mask_for, set_marks

# Keys of all entries of the tables, in parts, each with its IP version.
AllKeys = Callable[[], Iterable[tuple[int, Records]]]


class AddressFilter:
    """Not thread-safe: one writer."""

    def __init__(self, maps: PinnedMaps, all_keys: AllKeys, wait: Callable[[], None]) -> None:
        """`wait`: until no packet is left that was being judged."""
        self._control = maps.control
        self._words: Words = maps.arrays["address_filter"]["bits"]
        self._all_keys = all_keys
        self._wait = wait
        self._left_behind = 0

    @property
    def _mask(self) -> int:
        return int(self._control["filter_mask"])

    def mark(self, version: int, keys: Records) -> None:
        """Call before entries of these keys are written."""
        set_marks(self._words, marks(version, keys, self._mask))

    def mark_one(self, key: Key) -> None:
        for place, bits in marks_of_one(*key, self._mask):
            self._words[place] |= np.uint64(bits)

    def leave(self, count: int) -> bool:
        """Call after so many entries were deleted. True where it is time for renew()."""
        self._left_behind += count
        return self._left_behind > self._mask

    def reserve(self, entries: int) -> None:
        """So many in all. Raises KernelRefused and leaves all as it was for packets."""
        mask = mask_for(entries)
        if mask <= self._mask:
            return
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
        exact = np.zeros(len(self._words), np.uint64)
        self._mark_all(exact, self._mask)
        self._words[:] = exact
        self._left_behind = 0

    def _mark_all(self, words: Words, mask: int) -> None:
        for version, keys in self._all_keys():
            set_marks(words, marks(version, keys, mask))
