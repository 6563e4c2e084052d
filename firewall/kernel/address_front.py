"""The front of the IPv4 table: the entries that programs find without a call (bpf/layout.h, struct front_row).

Owns which row an entry may take and when. A row's key is one word, stored after its entry and cleared before the row
is anything else's; packets may still read the entry of a row that was cleared, so it is taken again only after
all of them are gone. Whether an entry stands here or in the hash map is address_table.py's to say.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from firewall.datapath import Key
from firewall.kernel.bpf import Records
from firewall.kernel.maps import PinnedMaps
from firewall.layout import ADDRESS_ENTRY, PREFIX4, C
from firewall.presence import hashes4, numbers4

Numbers = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

_U64 = np.uint64
_SCOPE_SHIFT = _U64(34)
_NUMBERS_END = _U64(C["ADDRESS_SCOPE_COUNT"]) << _SCOPE_SHIFT
_PREFIX_BITS = _U64((1 << 33) - 1)
_UNUSED_BIT = _U64(1 << 33)


class AddressFront:
    """Not thread-safe: one writer. A new process may take cleared rows at once: its start took longer than a packet."""

    def __init__(self, maps: PinnedMaps) -> None:
        rows = maps.arrays["address_front"]
        self._keys: Numbers = rows["key"]
        self._entries: Records = rows["entry"]
        self._is_left = np.zeros(len(rows), np.bool_)
        self.has_left_rows = False

    def takes(self, keys: Records) -> Mask:
        """Of keys that are nowhere yet, those that may be put here: each has a row that is free, and alone."""
        rows = _rows(numbers4(keys))
        takes = (self._keys[rows] == 0) & ~self._is_left[rows]
        if len(keys) > 1:
            is_first = np.zeros(len(keys), np.bool_)
            is_first[np.unique(rows, return_index=True)[1]] = True
            takes &= is_first
        return np.asarray(takes)

    def put(self, keys: Records, values: Records) -> None:
        """Keys that it takes."""
        numbers = numbers4(keys)
        rows = _rows(numbers)
        self._entries[rows] = values
        self._keys[rows] = numbers

    def clear(self, keys: Records) -> None:
        """Those that are not here are passed over."""
        if not self._keys.any():
            return
        numbers = numbers4(keys)
        rows = _rows(numbers)
        self._leave(rows[self._keys[rows] == numbers])

    def put_one(self, key: Key, value: bytes) -> bool:
        """The same for a key that is nowhere yet; whole numbers cost a tenth of arrays of one. False where it takes
        it not."""
        number, row = _place_of_one(key)
        if self._keys[row] or self._is_left[row]:
            return False
        self._entries[row] = np.frombuffer(value, ADDRESS_ENTRY)[0]
        self._keys[row] = number
        return True

    def clear_one(self, key: Key) -> None:
        number, row = _place_of_one(key)
        if int(self._keys[row]) == number:
            self._leave(np.array([row]))

    def clear_unmet(self) -> None:
        """Rows with a key that no packet looks for there: others wrote them."""
        self._leave(np.flatnonzero((self._keys != 0) & ~self._is_met()))

    def _leave(self, rows: Rows) -> None:
        if len(rows):
            self._keys[rows] = 0
            self._is_left[rows] = True
            self.has_left_rows = True

    def passed(self) -> None:
        """No packet is left that could read a row which was cleared before."""
        self._is_left[:] = False
        self.has_left_rows = False

    def holds(self, keys: Records) -> Mask:
        numbers = numbers4(keys)
        return np.asarray(self._keys[_rows(numbers)] == numbers)

    def lookup(self, key: bytes) -> bytes | None:
        numbers = numbers4(np.frombuffer(key, PREFIX4))
        (row,) = _rows(numbers)
        return self._entries[row].tobytes() if self._keys[row] == numbers[0] else None

    def values(self, keys: Records) -> tuple[Mask, Records]:
        """Which of the keys are here, and the entries of their rows."""
        numbers = numbers4(keys)
        rows = _rows(numbers)
        return np.asarray(self._keys[rows] == numbers), self._entries[rows]

    def dump(self) -> Iterator[tuple[Records, Records]]:
        """As Map.dump()."""
        rows = np.flatnonzero(self._is_met())
        if len(rows):
            yield _records(self._keys[rows]), self._entries[rows]

    def _is_met(self) -> Mask:
        keys = self._keys.copy()
        is_number = (keys < _NUMBERS_END) & (keys & _PREFIX_BITS != 0) & (keys & _UNUSED_BIT == 0)
        return np.asarray(is_number & (_rows(keys) == np.arange(len(keys))))


def _place_of_one(key: Key) -> tuple[int, int]:
    number = key.scope << 34 | key.address << 1 | 1 << (32 - key.length)
    return number, (number * C["FILTER_MULTIPLIER"] & (1 << 64) - 1) >> C["FRONT_SHIFT"]


def _rows(numbers: Numbers) -> Rows:
    return (hashes4(numbers) >> _U64(C["FRONT_SHIFT"])).astype(np.intp)


def _records(numbers: Numbers) -> Records:
    """Back to struct prefix4. The lowest bit set says the length."""
    records = np.zeros(len(numbers), PREFIX4)
    _, lowest = np.frexp((numbers & (~numbers + _U64(1))).astype(np.float64))
    network = (numbers & (numbers - _U64(1)) & _PREFIX_BITS) >> _U64(1)
    records["scope"], records["length"] = numbers >> _SCOPE_SHIFT, 33 - lowest
    records["address"] = network.astype(">u4").view("<u4")
    return records
