"""Rows of a cache line that IPv4 entries stand in: the front of small tables, and what large ones have in its place
(bpf/layout.h, struct front_row and row_bucket).

Owns which row an entry may take and when, and in what order a row's words are written. A row's key is stored after its
entry and cleared before the row is anything else's. Packets may still read and count in the entry of a row that was
cleared, so it is taken again only after all of them are gone. An entry that is written again stays in its row: its
ranks change in place, and its counters run on. What they had counted for somebody else stands in `packets_before` and
`bytes_before`.

Whether an entry stands here or in the hash map is address_table.py's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from firewall.datapath import Key
from firewall.kernel.bpf import Layout, Map, Records
from firewall.kernel.maps import PinnedMaps
from firewall.kernel.row_memory import MappedRows, RowMemory
from firewall.layout import ADDRESS_ENTRY, FRONT_ROW, PREFIX4, RANK_NONE, C
from firewall.presence import hashes4

Numbers = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]  # numbers of rows; NOWHERE for none
Mask = npt.NDArray[np.bool_]

NOWHERE = -1
WAYS = C["ROW_WAYS"]
_U64 = np.uint64
_HALF = _U64(32)
_SCOPE_SHIFT = _U64(34)
_NUMBERS_END = _U64(C["ADDRESS_SCOPE_COUNT"]) << _SCOPE_SHIFT
_PREFIX_BITS = _U64((1 << 33) - 1)
_UNUSED_BIT = _U64(1 << 33)
_BOTH = _U64(1 << 32 | 1)
_ALL = (1 << 64) - 1
_MULTIPLIER = C["FILTER_MULTIPLIER"]
_PART = 1 << 16  # rows that are read at once
# `rank` and `old_rank` of a row as one word.
_RANKS_AT = FRONT_ROW.fields["entry"][1] + ADDRESS_ENTRY.fields["rank"][1]  # type: ignore[index]
_RANKS: Layout = np.dtype(
    {"names": ["both"], "formats": ["<u8"], "offsets": [_RANKS_AT], "itemsize": FRONT_ROW.itemsize}
)


class AddressRows:
    """Of one array. Not thread-safe: one writer. A new process may take cleared rows at once: its start took longer
    than a packet."""

    def __init__(self, buckets: int, ways: int, memory: RowMemory) -> None:
        self.buckets = buckets
        self._ways = ways
        self._memory = memory
        self._rows = memory.rows
        self._keys: Numbers = memory.rows["key"]
        self._entries: Records = memory.rows["entry"]
        self._ranks: Numbers = memory.rows.view(_RANKS)["both"]
        self._is_left = np.zeros(buckets * ways, np.bool_)
        self._left: list[Places] = []

    @property
    def has_left(self) -> bool:
        """Whether rows were cleared that packets may still read."""
        return bool(self._left)

    def let_go(self) -> None:
        """Of memory that was mapped for a change of many."""
        self._memory.let_go()

    def rest(self) -> None:
        """Of what many single changes had mapped, too."""
        self._memory.rest()

    # -- where

    def _buckets_of(self, numbers: Numbers) -> Places:
        return (((hashes4(numbers) >> _HALF) * _U64(self.buckets)) >> _HALF).astype(np.int64)

    def find(self, numbers: Numbers) -> Places:
        """Of each prefix (presence.numbers4) the row that packets meet, or NOWHERE."""
        begin = self._buckets_of(numbers) * self._ways
        places = np.full(len(numbers), NOWHERE, np.int64)
        if not len(numbers):
            return places
        self._memory.need_at(begin)
        for way in reversed(range(self._ways)):
            is_here = self._keys[begin + way] == numbers
            places[is_here] = begin[is_here] + way
        return places

    # -- entries that come and go

    def put(self, numbers: Numbers, values: Records) -> Mask:
        """Prefixes that are nowhere yet, each once. Answers which were taken: those that a row was free for."""
        taken = np.zeros(len(numbers), np.bool_)
        if not len(numbers):
            return taken
        begin = self._buckets_of(numbers) * self._ways
        order = np.argsort(begin, kind="stable")
        begin = begin[order]
        self._memory.need_at(begin)
        free = np.stack(
            [(self._keys[begin + way] == 0) & ~self._is_left[begin + way] for way in range(self._ways)],
            axis=1,
        )
        nth_of_bucket = np.arange(len(begin)) - np.searchsorted(begin, begin)
        nth_free = np.cumsum(free, axis=1, dtype=np.int8)
        has_room = nth_free[:, -1] > nth_of_bucket
        way = np.argmax(free & (nth_free == (nth_of_bucket + 1)[:, None]), axis=1)
        at = (begin + way)[has_room]
        chosen = order[has_room]
        self._entries[at] = values[chosen]
        self._rows["packets_before"][at] = 0
        self._rows["bytes_before"][at] = 0
        self._keys[at] = numbers[chosen]
        taken[chosen] = True
        return taken

    def clear(self, places: Places) -> None:
        if len(places):
            self._memory.need_at(places)
            self._keys[places] = 0
            self._is_left[places] = True
            self._left.append(places)

    def passed(self) -> None:
        """No packet is left that could read a row which was cleared before."""
        for places in self._left:
            self._is_left[places] = False
        self._left.clear()

    # -- one alone: whole numbers cost a tenth of arrays of one

    def _bucket_of(self, number: int) -> tuple[int, list[int]]:
        """Where its bucket begins, and the keys there."""
        begin = ((number * _MULTIPLIER & _ALL) >> 32) * self.buckets >> 32
        begin *= self._ways
        self._memory.need_one(begin)
        return begin, self._keys[begin : begin + self._ways].tolist()

    def find_one(self, number: int) -> int:
        begin, keys = self._bucket_of(number)
        return begin + keys.index(number) if number in keys else NOWHERE

    def put_one(self, number: int, value: bytes) -> bool:
        """A prefix that is nowhere yet. False where no row is free for it."""
        begin, keys = self._bucket_of(number)
        for place, key in enumerate(keys, begin):
            if not key and not self._is_left[place]:
                row = self._rows[place]
                row["entry"] = np.frombuffer(value, ADDRESS_ENTRY)[0]
                row["packets_before"] = row["bytes_before"] = 0
                self._keys[place] = number
                return True
        return False

    # -- entries that change

    def rewrite(
        self, places: Places, values: Records, goes_on: Mask, epoch: int, wait: Callable[[], None]
    ) -> None:
        """Other values for entries that stand here, each once. Those whose `since` is an epoch to come are seen as they
        are until then, others at once. `goes_on`: whose hits go on; the others have from now those of their values.
        `wait`: until no packet is left that is being judged.

        At every moment a packet that reads the words of an entry in whatever order finds the rank before or the one
        after; if it reads some of them before a store and some after, too."""
        self._memory.need_at(places)
        comes = values["since"] > epoch
        self._change_now(places[~comes], values[~comes], epoch, wait)
        self._change_then(places[comes], values[comes], epoch, wait)
        self._entries["handle"][places] = values["handle"]
        anew, begins = places[~goes_on], values[~goes_on]
        for field in ("packets", "bytes"):
            self._rows[f"{field}_before"][anew] = self._entries[field][anew] - begins[field]

    def _change_now(self, at: Places, values: Records, epoch: int, wait: Callable[[], None]) -> None:
        """One word has both ranks, so `since` says nothing from then on."""
        if not len(at):
            return
        self._ranks[at] = values["rank"].astype(np.uint64) * _BOTH
        waiting = at[self._entries["since"][at] > epoch]
        if len(waiting):
            wait()
            self._entries["since"][waiting] = 0

    def _change_then(self, at: Places, values: Records, epoch: int, wait: Callable[[], None]) -> None:
        """Both ranks become what is seen now; then `since` may go to the epoch to come; then nobody reads `rank`."""
        if not len(at):
            return
        entries = self._entries
        waits = entries["since"][at] > epoch
        seen = np.where(waits, entries["old_rank"][at], entries["rank"][at])
        self._ranks[at] = seen.astype(np.uint64) * _BOTH
        wait()
        entries["since"][at] = values["since"]
        wait()
        entries["rank"][at] = values["rank"]

    # -- entries that go with an epoch to come: the same three steps, for many in parts

    def hold(self, places: Places, epoch: int) -> None:
        """Both ranks become what is seen now."""
        entries = self._entries
        for at in self._in_parts(places):
            waits = entries["since"][at] > epoch
            seen = np.where(waits, entries["old_rank"][at], entries["rank"][at])
            self._ranks[at] = seen.astype(np.uint64) * _BOTH

    def appoint(self, places: Places, end: int) -> None:
        """After hold() and a wait: those that packets read now have one rank, whatever `since` says."""
        for at in self._in_parts(places):
            self._entries["since"][at] = end

    def vanish(self, places: Places) -> None:
        """After appoint() and a wait: nobody reads `rank` before the epoch has come."""
        for at in self._in_parts(places):
            self._entries["rank"][at] = RANK_NONE

    def _in_parts(self, places: Places) -> Iterator[Places]:
        self._memory.need_at(places)
        return (places[begin : begin + _PART] for begin in range(0, len(places), _PART))

    def add_hits(self, places: Places, packets: Numbers, size: Numbers) -> None:
        """Hits that were counted elsewhere for these entries. Programs count on meanwhile."""
        self._memory.need_at(places)
        self._rows["packets_before"][places] -= packets
        self._rows["bytes_before"][places] -= size

    # -- reading

    def values(self, places: Places) -> Records:
        """Entries, with their own hits."""
        self._memory.need_at(places)
        return self._values(places)

    def _values(self, places: Places) -> Records:
        entries = self._entries[places]
        for field in ("packets", "bytes"):
            entries[field] -= self._rows[f"{field}_before"][places]
        return entries

    def dump(self, part: int = _PART) -> Iterator[tuple[Records, Records]]:
        """As Map.dump()."""
        for numbers, _, values in self.content(part):
            yield prefixes_of(numbers), values

    def content(self, part: int = _PART) -> Iterator[tuple[Numbers, Places, Records]]:
        """Prefixes, where they stand, their entries: those that packets meet."""
        for first in range(0, len(self._is_left), part):
            end = min(first + part, len(self._is_left))
            with self._memory.part(first, end):
                keys = self._keys[first:end].copy()
                at = np.flatnonzero(self._is_met(keys, first))
                values = self._values(at + first)
            if len(at):
                yield keys[at], at + first, values

    def clear_unmet(self) -> None:
        """Rows with a key that no packet looks for there, or meets before: others wrote them."""
        keys = self._all_keys()
        self.clear(np.flatnonzero((keys != 0) & ~self._is_met(keys, 0)))

    def clear_all(self) -> None:
        self.clear(np.flatnonzero(self._all_keys() != 0))

    def _all_keys(self) -> Numbers:
        self._memory.need_all()
        return self._keys.copy()

    def _is_met(self, keys: Numbers, first: int) -> Mask:
        """Of the keys of whole buckets, those that packets look for there."""
        is_number = (keys < _NUMBERS_END) & (keys & _PREFIX_BITS != 0) & (keys & _UNUSED_BIT == 0)
        bucket = (np.arange(len(keys)) + first) // self._ways
        is_met = np.asarray(is_number & (self._buckets_of(keys) == bucket))
        ways = keys.reshape(-1, self._ways)
        for way in range(1, self._ways):
            is_met[way :: self._ways] &= ~(ways[:, :way] == ways[:, way, None]).any(axis=1)
        return is_met


def front_of(maps: PinnedMaps) -> AddressRows:
    return AddressRows(C["FRONT_ROWS"], 1, RowMemory(maps.arrays["address_front"]))


def rows_of(table: Map, buckets: int) -> AddressRows:
    """Of the array of a large table."""
    return AddressRows(buckets, WAYS, MappedRows(table, buckets * WAYS))


def rows_in_use(maps: PinnedMaps) -> AddressRows:
    """Those that packets look into, by what the control words say."""
    live = maps.live_rows
    if live is None:
        return front_of(maps)
    slot, buckets = live
    return rows_of(maps.rows(slot), buckets)


def number_of(key: Key) -> int:
    """As presence.numbers4(), of one."""
    return key.scope << 34 | key.address << 1 | 1 << (32 - key.length)


def prefixes_of(numbers: Numbers) -> Records:
    """Numbers back to struct prefix4. The lowest bit set says the length."""
    records = np.zeros(len(numbers), PREFIX4)
    _, lowest = np.frexp((numbers & (~numbers + _U64(1))).astype(np.float64))
    network = (numbers & (numbers - _U64(1)) & _PREFIX_BITS) >> _U64(1)
    records["scope"], records["length"] = numbers >> _SCOPE_SHIFT, 33 - lowest
    records["address"] = network.astype(">u4").view("<u4")
    return records
