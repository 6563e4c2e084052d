"""An address table of the kernel: one family's entries behind the filter, in a hash map and, of IPv4, in the front.

Owns that every write and delete tells the filter, in which of the two an entry stands, and growth: a larger map is
filled beside and put in the place of the present one, while the programs stay.

Packets look into the front first. So an entry that comes with few others may be put there, where a row is free; written
again it goes over to the hash map and leaves its row after that: at every moment packets meet the one or the other,
whole. Whose process ends in between leaves both, and mend() takes away the one that no packet has met.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firewall.datapath import Key
from firewall.kernel.address_filter import AddressFilter
from firewall.kernel.address_front import AddressFront, Mask
from firewall.kernel.bpf import Map, Records
from firewall.kernel.keys import PREFIX, key_bytes
from firewall.kernel.maps import PinnedMaps
from firewall.layout import ADDRESS_ENTRY

# The front serves lists that are small, or grow by a few; of a large one it could hold no share worth a look.
FEW = 1024


class AddressTable:
    """Of one IP version. Not thread-safe: one writer."""

    def __init__(self, maps: PinnedMaps, version: int, before: AddressFilter) -> None:
        self._maps = maps
        self._version = version
        self._filter = before
        self._front = AddressFront(maps) if version == 4 else None
        self._name = f"address{version}"

    @property
    def _map(self) -> Map:
        return self._maps[self._name]

    def write(self, keys: Records, values: Records, are_there: bool = False) -> None:
        """`are_there`: all of them, so that the filter has their bits."""
        if not are_there:
            self._filter.mark(self._version, keys)
        if self._front is None:
            self._map.update_batch(keys, values)
            return
        if len(keys) > FEW:
            self._map.update_batch(keys, values)
            self._front.clear(keys)
            return
        fresh = self._fresh(self._front, keys)
        self._map.update_batch(keys[~fresh], values[~fresh])
        self._front.clear(keys[~fresh])
        self._front.put(keys[fresh], values[fresh])

    def _fresh(self, front: AddressFront, keys: Records) -> Mask:
        """Those that the front takes. One that stands in the hash map stays there, or there were two of it."""
        takes = front.takes(keys)
        takes[takes] = [self._map.lookup(key.tobytes()) is None for key in keys[takes]]
        return takes

    def write_one(self, key: Key, value: bytes) -> None:
        self._filter.mark_one(key)
        record = key_bytes(key)
        if self._front is None:
            self._map.update(record, value)
        elif self._map.lookup(record) is not None or not self._front.put_one(key, value):
            self._map.update(record, value)
            self._front.clear_one(key)

    def delete(self, keys: Records) -> None:
        """Keys that are not there are passed over."""
        self._map.delete_batch(keys)
        if self._front is not None:
            self._front.clear(keys)
        self._filter.leave(len(keys))

    def lookup(self, key: bytes) -> bytes | None:
        found = None if self._front is None else self._front.lookup(key)
        return self._map.lookup(key) if found is None else found

    def lookup_many(self, keys: Records) -> tuple[npt.NDArray[np.bool_], Records]:
        found, values = self._map.lookup_many(keys, ADDRESS_ENTRY)
        values = values[:, 0]
        if self._front is not None:
            here, entries = self._front.values(keys)
            found, values[here] = found | here, entries[here]
        return found, values

    def dump(self) -> Iterator[tuple[Records, Records]]:
        yield from self._map.dump(PREFIX[self._version], ADDRESS_ENTRY)
        if self._front is not None:
            yield from self._front.dump()

    def mend(self) -> None:
        """Makes every entry stand in one place alone, whatever there was."""
        if self._front is not None:
            self._front.clear_unmet()
            for keys, _ in self._front.dump():
                self._map.delete_batch(keys)

    @property
    def has_left_rows(self) -> bool:
        """Whether entries were taken from the front that packets may still read."""
        return self._front is not None and self._front.has_left_rows

    def passed(self) -> None:
        """Call when no packet is left that was being judged."""
        if self._front is not None:
            self._front.passed()

    def reserve(self, entries: int, pins: Path) -> None:
        """Makes room for so many; `pins`: below which the maps are pinned. Raises KernelRefused and leaves all as it
        was for packets."""
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
        self._filter.forget_renewal()
        self._maps.replace_addresses(self._version, larger, pins)


def _room_for(entries: int, have: int) -> int:
    """Capacity of a hash map for so many entries. A full preallocated map makes CPUs fight over the last free
    elements, so a part of it stays free; powers of two, because its buckets are one in any case."""
    while have - have // 25 < entries:
        have *= 2
    return have
