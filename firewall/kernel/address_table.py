"""An address table of the kernel: the hash map of one family's entries behind the filter.

Owns that every write and delete tells the filter, and growth: a larger map is filled beside and put in the place of
the present one, while the programs stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firewall.datapath import Key
from firewall.errors import FirewallError
from firewall.kernel.address_filter import AddressFilter
from firewall.kernel.bpf import Map, Records
from firewall.kernel.keys import PREFIX, key_bytes
from firewall.kernel.maps import PinnedMaps
from firewall.layout import ADDRESS_ENTRY


class AddressTable:
    """Of one IP version. Not thread-safe: one writer."""

    def __init__(self, maps: PinnedMaps, version: int, before: AddressFilter) -> None:
        self._maps = maps
        self._version = version
        self._filter = before
        self._name = f"address{version}"

    @property
    def _map(self) -> Map:
        return self._maps[self._name]

    def write(self, keys: Records, values: Records) -> None:
        self._filter.mark(self._version, keys)
        self._map.update_batch(keys, values)

    def write_one(self, key: Key, value: bytes) -> None:
        self._filter.mark_one(key)
        self._map.update(key_bytes(key), value)

    def delete(self, keys: Records) -> None:
        """Keys that are not there are passed over."""
        self._map.delete_batch(keys)
        if self._filter.leave(len(keys)):
            with suppress(FirewallError):  # a bit too many costs a probe
                self._filter.renew()

    def lookup(self, key: bytes) -> bytes | None:
        return self._map.lookup(key)

    def lookup_many(self, keys: Records) -> tuple[npt.NDArray[np.bool_], Records]:
        found, values = self._map.lookup_many(keys, ADDRESS_ENTRY)
        return found, values[:, 0]

    def dump(self) -> Iterator[tuple[Records, Records]]:
        return self._map.dump(PREFIX[self._version], ADDRESS_ENTRY)

    def reserve(self, entries: int, pins: Path) -> None:
        """Makes room for so many; `pins`: below which the maps are pinned. Raises KernelRefused and leaves all as it
        was for packets."""
        have = self._map.info.max_entries
        room = _room_for(entries, have)
        if room == have:
            return
        larger = Map.hash(self._name, PREFIX[self._version], ADDRESS_ENTRY, room)
        try:
            for keys, values in self.dump():
                larger.update_batch(keys, values)
        except BaseException:
            larger.close()
            raise
        self._maps.replace_addresses(self._version, larger, pins)


def _room_for(entries: int, have: int) -> int:
    """Capacity of a hash map for so many entries. A full preallocated map makes CPUs fight over the last free
    elements, so a part of it stays free; powers of two, because its buckets are one in any case."""
    while have - have // 25 < entries:
        have *= 2
    return have
