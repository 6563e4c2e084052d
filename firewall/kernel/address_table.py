"""An address table of the kernel: a family's entries behind the filter, in a hash map and, of IPv4, in rows before it.

Owns that every write and delete tells the filter, in which of the two an entry stands, and growth: larger rows or a
larger map are filled beside and put in the place of the present ones, while the programs stay.

Packets look into the rows first. An entry that comes is put there where a row is free, and stays where it is as long as
it is there, whatever is written. Small tables have the front, an array that programs read without a call; a table of
more than FRONT_ENTRIES has rows of its own, three for two entries.

An entry stands in one place alone, but while rows grow: then it is still in the old place as well, until _tidy() takes
it away. Whose process ends before leaves both; packets meet the one in the rows, and mend() takes the other away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.datapath import Entries, Key
from firewall.errors import FirewallError
from firewall.kernel.address_filter import AddressFilter
from firewall.kernel.address_rows import (
    NOWHERE,
    WAYS,
    AddressRows,
    Mask,
    Numbers,
    Places,
    front_of,
    number_of,
    prefixes_of,
    rows_in_use,
    rows_of,
)
from firewall.kernel.bpf import Map, Records
from firewall.kernel.keys import PREFIX, entries_key_records, key_bytes, many_entry_records
from firewall.kernel.maps import PinnedMaps
from firewall.layout import ADDRESS_ENTRY, LAYOUT, PREFIX4, RANK_NONE, C
from firewall.presence import numbers4

FRONT_ENTRIES = 1024
ROW_BUCKET = LAYOUT.structs["row_bucket"]
FEWEST_BUCKETS = 1024
_NO_ROWS = 1  # bucket
_FEW_LOOKUPS = 128
_PART = 1 << 16  # entries that are written at once
# One entry in so many, at most, finds its bucket full: 8% at three rows for two entries, 11% at four for three.
_BEHIND_ROWS = 8


class AddressTable:
    """Of one IP version. Not thread-safe: one writer."""

    def __init__(
        self, maps: PinnedMaps, version: int, before: AddressFilter, wait: Callable[[], None]
    ) -> None:
        """`wait`: until no packet is left that was being judged, and then calls passed()."""
        self._maps = maps
        self._version = version
        self._filter = before
        self._wait = wait
        self._rows = rows_in_use(maps) if version == 4 else None
        self._name = f"address{version}"
        self._most_behind: int | None = None  # entries in the hash map of IPv4, at most
        self._pins: Path | None = None
        self._is_tidy = True
        self._room = 0  # entries that there is room for, as far as is known
        self.moves = 0  # times that entries went to other places

    @property
    def _map(self) -> Map:
        return self._maps[self._name]

    # -- entries

    def write(
        self, keys: Records, values: Records, goes_on: Mask | None = None, are_there: bool = False
    ) -> None:
        """Entries, each key once. `goes_on`: of those that are there, whose hits go on; else they begin with those of
        their values. `are_there`: all of them, so that the filter has their bits."""
        self._write(keys, lambda rows: values[rows], goes_on, are_there)

    def come(self, entries: Entries, epoch: int) -> None:
        """Entries of which there are none yet, with an epoch to come: their values are made part by part."""
        self._write(
            entries_key_records(entries),
            lambda rows: many_entry_records(entries.at(rows), epoch),
            None,
            False,
        )

    def _write(
        self, keys: Records, values: Callable[[Places], Records], goes_on: Mask | None, are_there: bool
    ) -> None:
        """`values`: of some, by their numbers."""
        if not are_there:
            self._filter.mark(self._version, keys)
        if self._rows is None:
            for some in _parts(np.arange(len(keys))):
                self._map.update_batch(keys[some], values(some))
            return
        numbers = numbers4(keys)
        places = self._rows.find(numbers)
        here = np.flatnonzero(places >= 0)
        if len(here):
            goes_on = np.zeros(len(keys), np.bool_) if goes_on is None else goes_on
            self._rows.rewrite(places[here], values(here), goes_on[here], self._epoch, self._wait)
        rest = np.flatnonzero(places < 0)
        behind = self._behind(keys[rest], numbers[rest])
        for part in _parts(np.arange(len(rest))):
            some = rest[part]
            self._write_elsewhere(self._rows, keys[some], numbers[some], values(some), behind[part])

    def write_one(self, key: Key, value: bytes, goes_on: bool, is_new: bool) -> None:
        """The same for one. `is_new`: no rule had this prefix."""
        self._filter.mark_one(key)
        record = key_bytes(key)
        if self._rows is None:
            self._map.update(record, value)
            return
        number = number_of(key)
        place = self._rows.find_one(number)
        if place >= 0:
            values, epoch = np.frombuffer(value, ADDRESS_ENTRY), int(self._maps.control["epoch"])
            self._rows.rewrite(np.array([place]), values, np.array([goes_on]), epoch, self._wait)
            return
        is_behind = not is_new and self._map.lookup(record) is not None
        if is_behind or not self._rows.put_one(number, value):
            if not is_behind:
                self._make_room(1)
            self._map.update(record, value)

    def _write_elsewhere(
        self, rows: AddressRows, keys: Records, numbers: Numbers, values: Records, behind: Mask
    ) -> None:
        """Entries that stand in no row. One that stands in the hash map stays there, or there were two of it."""
        taken = np.zeros(len(keys), np.bool_)
        taken[~behind] = rows.put(numbers[~behind], values[~behind])
        if not taken.all():
            self._make_room(int(np.count_nonzero(~taken & ~behind)))
            self._map.update_batch(keys[~taken], values[~taken])

    def _behind(self, keys: Records, numbers: Numbers) -> Mask:
        """Which of the entries stand in the hash map."""
        if len(keys) <= _FEW_LOOKUPS:
            return np.array([self._map.lookup(key.tobytes()) is not None for key in keys], np.bool_)
        return np.isin(numbers, self._numbers_behind())

    def _numbers_behind(self) -> Numbers:
        found = [numbers4(keys) for keys, _ in self._map.dump(PREFIX4, ADDRESS_ENTRY)]
        numbers = np.concatenate([np.zeros(0, np.uint64), *found])
        self._most_behind = len(numbers)
        return numbers

    def delete(self, keys: Records) -> None:
        """Keys that are not there are passed over."""
        if self._rows is None:
            self._map.delete_batch(keys)
        else:
            places = self._rows.find(numbers4(keys))
            self._map.delete_batch(keys[places < 0])
            self._rows.clear(places[places >= 0])
        self._filter.leave(len(keys))

    def delete_one(self, key: Key) -> None:
        place = NOWHERE if self._rows is None else self._rows.find_one(number_of(key))
        if self._rows is not None and place >= 0:
            self._rows.clear(np.array([place]))
        else:
            self._map.delete(key_bytes(key))
        self._filter.leave(1)

    # -- entries that go with an epoch to come

    def leave(self, entries: Entries, end: int) -> None:
        """Entries that are there: packets meet them as they are until the epoch `end`, and then no more."""
        keys = entries_key_records(entries)
        places = self._places(keys)
        here = places[places >= 0]
        if self._rows is not None and len(here):
            self._rows.hold(here, self._epoch)
            self._wait()
            self._rows.appoint(here, end)
            self._wait()
            self._rows.vanish(here)
        for some in _parts(np.flatnonzero(places < 0)):
            values = many_entry_records(entries.at(some), end, is_there_before=True)
            self._map.update_batch(keys[some], values)

    def hold(self, entries: Entries, end: int) -> None:
        """The first step of the same, for those that are there as they are told. appoint() and vanish() come after it,
        each after a wait; what was written otherwise since then is left alone."""
        keys, epoch = entries_key_records(entries), self._epoch
        places, _ = self._in_rows(entries)
        if self._rows is not None:
            self._rows.hold(places, epoch)
        rest = np.flatnonzero(self._places(keys) < 0)
        if not len(rest):
            return
        found, copies = self._map.lookup_many(keys[rest], ADDRESS_ENTRY)
        values, some = copies[found, 0], rest[found]
        met = _is_met(values, entries.at(some), epoch)
        values, some = values[met], some[met]
        values["old_rank"], values["since"], values["rank"] = entries.ranks[some], end, RANK_NONE
        self._map.update_batch(keys[some], values)

    def appoint(self, entries: Entries, end: int) -> None:
        places, values = self._in_rows(entries)
        is_held = (values["since"] <= self._epoch) & (values["rank"] == values["old_rank"])
        if self._rows is not None:
            self._rows.appoint(places[is_held], end)

    def vanish(self, entries: Entries, end: int) -> None:
        places, values = self._in_rows(entries)
        if self._rows is not None:
            self._rows.vanish(places[values["since"] == end])

    def _in_rows(self, entries: Entries) -> tuple[Places, Records]:
        """Of those that stand there as they are told: where, and their values."""
        places = self._places(entries_key_records(entries))
        here = np.flatnonzero(places >= 0)
        if self._rows is None or not len(here):
            return places[here], np.zeros(0, ADDRESS_ENTRY)
        places, values = places[here], self._rows.values(places[here])
        is_same = _is_met(values, entries.at(here), self._epoch)
        return places[is_same], values[is_same]

    def _places(self, keys: Records) -> Places:
        """In the rows, or NOWHERE."""
        if self._rows is None:
            return np.full(len(keys), NOWHERE, np.int64)
        return self._rows.find(numbers4(keys))

    @property
    def _epoch(self) -> int:
        return int(self._maps.control["epoch"])

    def lookup(self, key: Key) -> bytes | None:
        if self._rows is not None:
            place = self._rows.find_one(number_of(key))
            if place >= 0:
                return self._rows.values(np.array([place])).tobytes()
        return self._map.lookup(key_bytes(key))

    def lookup_many(self, keys: Records) -> tuple[npt.NDArray[np.bool_], Records]:
        """Which are there, and a value for each."""
        if self._rows is None:
            found, copies = self._map.lookup_many(keys, ADDRESS_ENTRY)
            return found, copies[:, 0]
        numbers, values = numbers4(keys), np.zeros(len(keys), ADDRESS_ENTRY)
        places = self._rows.find(numbers)
        here = places >= 0
        found, values[here] = here.copy(), self._rows.values(places[here])
        found[~here], copies = self._map.lookup_many(keys[~here], ADDRESS_ENTRY)
        values[~here] = copies[:, 0]
        return found, values

    def dump(self) -> Iterator[tuple[Records, Records]]:
        yield from self._map.dump(PREFIX[self._version], ADDRESS_ENTRY)
        if self._rows is not None:
            yield from self._rows.dump()

    # -- rows

    def let_go(self) -> None:
        """Of memory that a change of many had at hand."""
        if self._rows is not None:
            self._rows.let_go()

    def rest(self) -> None:
        """Of what many single changes had at hand, too."""
        if self._rows is not None:
            self._rows.rest()

    @property
    def has_left_rows(self) -> bool:
        """Whether entries were taken from rows that packets may still read."""
        return self._rows is not None and self._rows.has_left

    def passed(self) -> None:
        """Call when no packet is left that was being judged."""
        if self._rows is not None:
            self._rows.passed()

    def mend(self) -> None:
        """Makes every entry stand in one place alone, whatever there was."""
        if self._rows is not None:
            live = self._maps.live_rows
            if live is not None:
                self._maps.use_rows(*live)
            self._rows.clear_unmet()
            self._wait()
            self._tidy(self._rows)

    def _tidy(self, rows: AddressRows) -> None:
        """Takes away what rows have and no packet meets any more: from the hash map, the front, the other array."""
        behind = self._numbers_behind()
        both = behind[rows.find(behind) >= 0]
        if len(both):
            self._map.delete_batch(prefixes_of(both))
            self._most_behind = len(behind) - len(both)
        live = self._maps.live_rows
        if live is not None:
            front_of(self._maps).clear_all()
        for slot in range(C["ROWS_SLOTS"]):
            is_live = live is not None and live[0] == slot
            if not is_live and self._pins is not None and self._maps.rows(slot).info.max_entries > _NO_ROWS:
                self._maps.replace_rows(slot, no_rows(slot), self._pins)
        self._is_tidy = True

    # -- room

    def pinned_below(self, pins: Path) -> None:
        """From now on."""
        self._pins = pins

    def has_room(self, entries: int) -> bool:
        """As far as is known."""
        return entries <= self._room and self._is_tidy

    def reserve(self, entries: int, pins: Path) -> None:
        """Makes room for so many; `pins`: below which the maps are pinned. Raises KernelRefused and leaves all as it
        was for packets."""
        self._pins = pins
        if self.has_room(entries):
            return
        self._grow(entries, pins)
        live, room = self._maps.live_rows, _most_in(self._map.info.max_entries)
        if self._rows is not None:
            room = min(FRONT_ENTRIES, room) if live is None else min(_room_of(live[1]), room * _BEHIND_ROWS)
        self._room = room

    def _grow(self, entries: int, pins: Path) -> None:
        if self._rows is None:
            self._grow_map(entries, pins)
            return
        if not self._is_tidy:
            self._wait()
            self._tidy(self._rows)
        live = self._maps.live_rows
        if entries > (FRONT_ENTRIES if live is None else _room_of(live[1])):
            self._grow_rows(self._rows, _buckets_for(entries), pins)
            live = self._maps.live_rows
        self._grow_map(entries if live is None else entries // _BEHIND_ROWS, pins)

    def _make_room(self, more: int) -> None:
        """For entries that find no row: of addresses that stand apart by a step which the hash makes little of, there
        are more than reserve() thinks."""
        have = self._map.info.max_entries
        if self._most_behind is None or _room_for(self._most_behind + more, have) > have:
            self._numbers_behind()
        self._most_behind = (self._most_behind or 0) + more
        if self._pins is not None:
            self._grow_map(self._most_behind, self._pins)

    def _grow_map(self, entries: int, pins: Path) -> None:
        have = self._map.info.max_entries
        room = _room_for(entries, have)
        if room == have:
            return
        larger = Map.hash(self._name, PREFIX[self._version], ADDRESS_ENTRY, room)
        try:
            for keys, values in self._map.dump(PREFIX[self._version], ADDRESS_ENTRY):
                larger.update_batch(keys, values)
        except BaseException:
            larger.close()
            raise
        self._moved()
        self._maps.replace_addresses(self._version, larger, pins)

    def _moved(self) -> None:
        """Whoever walks over the entries may not meet those that move: it begins again."""
        self._filter.forget_renewal()
        self.moves += 1

    def _grow_rows(self, old: AddressRows, buckets: int, pins: Path) -> None:
        """Fills larger rows with all entries and leads packets there by one store. What they counted meanwhile in the
        old places follows."""
        live = self._maps.live_rows
        slot = 0 if live is None else 1 - live[0]
        self._is_tidy = False
        self._moved()
        try:
            self._maps.replace_rows(slot, new_rows(slot, buckets), pins)
            rows = rows_of(self._maps.rows(slot), buckets)
            behind = self._fill_from_map(old, rows)
            counted = self._fill_from_rows(old, rows)
        except BaseException:
            with suppress(FirewallError):  # the next change tidies up
                self._tidy(old)
            raise
        self._maps.use_rows(slot, buckets)
        self._rows = rows
        self._wait()
        for (numbers, _, now), before in zip(old.content(), counted, strict=True):
            _follow(rows, numbers, before, now)
        found, now = self._map.lookup_many(prefixes_of(behind.numbers), ADDRESS_ENTRY)
        hits = {field: behind.hits[field][found] for field in _COUNTERS}
        _follow(rows, behind.numbers[found], hits, now[found, 0])
        self._tidy(rows)

    def _fill_from_map(self, old: AddressRows, rows: AddressRows) -> _Moved:
        """Those that found a row."""
        parts = [_Moved(np.zeros(0, np.uint64), _hits_of(np.zeros(0, ADDRESS_ENTRY)))]
        for keys, values in self._map.dump(PREFIX4, ADDRESS_ENTRY):
            numbers = numbers4(keys)
            alone = old.find(numbers) < 0
            numbers, values = numbers[alone], values[alone]
            taken = rows.put(numbers, values)
            parts.append(_Moved(numbers[taken], _hits_of(values[taken])))
        hits = {field: np.concatenate([part.hits[field] for part in parts]) for field in _COUNTERS}
        return _Moved(np.concatenate([part.numbers for part in parts]), hits)

    def _fill_from_rows(self, old: AddressRows, rows: AddressRows) -> list[_Hits]:
        """All of them: those that find no row go into the hash map. Answers in parts what they had counted."""
        parts = []
        for numbers, _, values in old.content():
            taken = rows.put(numbers, values)
            if not taken.all():
                self._make_room(int(np.count_nonzero(~taken)))
                self._map.update_batch(prefixes_of(numbers[~taken]), values[~taken])
            parts.append(_hits_of(values))
        return parts


def _parts(rows: Places) -> Iterator[Places]:
    return (rows[begin : begin + _PART] for begin in range(0, len(rows), _PART))


def _is_met(values: Records, entries: Entries, epoch: int) -> Mask:
    """Which of the values are what packets of an epoch meet as these entries."""
    ranks = np.where(values["since"] <= epoch, values["rank"], values["old_rank"])
    return np.asarray((ranks == entries.ranks) & (values["handle"] == entries.handles))


_COUNTERS = ("packets", "bytes")
_Hits = dict[str, Numbers]  # a column each of _COUNTERS


class _Moved(NamedTuple):
    numbers: Numbers
    hits: _Hits


def _hits_of(values: Records) -> _Hits:
    return {field: values[field].copy() for field in _COUNTERS}


def _follow(rows: AddressRows, numbers: Numbers, before: _Hits, now: Records) -> None:
    """Adds what the old places of entries counted after they were copied."""
    differs = now["packets"] != before["packets"]
    places = rows.find(numbers[differs])
    here = places >= 0
    packets, size = (now[field][differs][here] - before[field][differs][here] for field in _COUNTERS)
    rows.add_hits(places[here], packets, size)


def new_rows(slot: int, buckets: int) -> Map:
    return Map.inner_array(f"address_rows{slot}", ROW_BUCKET, buckets)


def no_rows(slot: int) -> Map:
    """What stands where no rows are in use."""
    return new_rows(slot, _NO_ROWS)


def _buckets_for(entries: int) -> int:
    """At three rows for two entries, or up to a quarter more: then growth has fewer steps."""
    wanted = max(FEWEST_BUCKETS, -(-entries * 3 // (2 * WAYS)))
    step = 1 << (wanted.bit_length() - 3)
    return -(-wanted // step) * step


def _room_of(buckets: int) -> int:
    """Entries for which these rows are enough: four rows for three."""
    return buckets * WAYS * 3 // 4


def _room_for(entries: int, have: int) -> int:
    """Capacity of a hash map for so many entries. A full preallocated map makes CPUs fight over the last free
    elements, so a part of it stays free; powers of two, because its buckets are one in any case."""
    while _most_in(have) < entries:
        have *= 2
    return have


def _most_in(capacity: int) -> int:
    return capacity - capacity // 25
