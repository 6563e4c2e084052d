"""Notices what others wrote into our maps.

Owns what the maps were like when we last wrote them. Entries of the address tables are compared with the rules, a
part at each look, and each must have its bits in the filter; control words with a copy made at each of our writes;
the policy by a checksum, taken at the first look after a write of ours (what another writes in between stays unseen
until the next start). Counters are never compared. It repairs nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firewall.address_index import Keys, no_entries
from firewall.datapath import Entries, Expected
from firewall.kernel.address_rows import rows_in_use
from firewall.kernel.bpf import Records
from firewall.kernel.keys import PREFIX, encoded_keys, entries_key_records
from firewall.kernel.maps import PinnedMaps
from firewall.layout import ADDRESS_ENTRY, RANK_NONE, C
from firewall.presence import marks, numbers4

# Looked at every time, because they are small and decide much; of the large ones one at each look.
_SMALL = ("policy_heads", "policy_rules", "policy_protocol")
_LARGE = (
    "policy_port", "policy_icmp", "policy_index4", "policy_ranges4", "policy_ranges6", "policy_lines",
    "policy_sets_of", "policy_named", "policy_set4", "policy_set6",
)  # fmt: skip
_POLICY_HASHES = ("policy_iface",)
_VECTORS = "policy_vectors"
_ENTRIES_A_LOOK = 4096  # some 3 ms: changes wait for a look
# Control words that change without a change of rules: those of reports.py, which looks after them itself.
_NOT_OURS = ("listening", "snap_length", "report_limits")
VERSIONS = (4, 6)
Numbers = npt.NDArray[np.uint32]


@dataclass
class _Pass:
    """A walk over one address table, over several looks. `maps`: whose descriptors it has; `changes`: of ours that
    there had been at its start."""

    maps: PinnedMaps
    tables: list[int]
    parts: Iterator[tuple[Records, Records]]
    changes: int
    seen: list[Keys] = field(default_factory=list)


class MapAudit:
    """Not thread-safe: under the enforcer's lock, as all that writes the maps."""

    def __init__(self) -> None:
        self._control: bytes | None = None
        self._sums: dict[str, int] = {}
        self._passes: dict[int, _Pass] = {}
        self._told: dict[int, list[str]] = {version: [] for version in VERSIONS}
        self._changes = 0
        self._turn = 0

    def wrote(self, maps: PinnedMaps, policy: bool) -> None:
        """We changed the maps: entries and control words, and perhaps the policy."""
        self._control = maps.arrays["control_map"].tobytes()
        self._changes += 1
        if policy:
            self._sums.clear()

    def look(self, maps: PinnedMaps, expected: Expected) -> list[str]:
        """What is not as we left it, in words. What the last change left for later may be there: nothing looks at it,
        and it is nobody's entry any more."""
        found = []
        now = maps.arrays["control_map"].tobytes()
        if self._control is not None and _ours(now, maps) != _ours(self._control, maps):
            found.append("the control words were changed")
        found += [
            f"address{version}_maps leads to another table"
            for version in VERSIONS
            if maps[f"address{version}_maps"].lookup(bytes(4))
            != maps[f"address{version}"].info.id.to_bytes(4, "little")
        ]
        found += [
            "rows_maps leads to other rows"
            for slot in range(C["ROWS_SLOTS"])
            if maps["rows_maps"].lookup(slot.to_bytes(4, "little"))
            != maps.rows(slot).info.id.to_bytes(4, "little")
        ]
        found += [f"{name} was changed" for name in self._names() if self._differs(maps, name)]
        for version in VERSIONS:
            found += self._entries(maps, version, expected)
        return found

    def restore(self, maps: PinnedMaps) -> None:
        """Puts the control words back, and forgets all sums: the maps are about to be written."""
        if self._control is not None:
            control = maps.arrays["control_map"]
            for name in control.dtype.names or ():
                if name not in _NOT_OURS:
                    control[name] = np.frombuffer(self._control, control.dtype)[name]
        self._sums.clear()
        self._passes.clear()
        self._told = {version: [] for version in VERSIONS}

    # -- checksums

    def _names(self) -> list[str]:
        rest = (*_LARGE, _VECTORS)
        self._turn += 1
        return [*_SMALL, *_POLICY_HASHES, rest[self._turn % len(rest)]]

    def _differs(self, maps: PinnedMaps, name: str) -> bool:
        now = _sum(maps, name)
        return now != self._sums.setdefault(name, now)

    # -- entries

    def _epoch(self) -> int:
        return int.from_bytes((self._control or bytes(8))[:8], "little")

    def _entries(self, maps: PinnedMaps, version: int, expected: Expected) -> list[str]:
        """What is wrong with the entries: told until a walk over all of them has found nothing."""
        tables = _tables(maps, version)
        walk = self._passes.get(version)
        if walk is None or walk.maps is not maps or walk.tables != tables:
            parts = _parts(maps, version)
            walk = self._passes[version] = _Pass(maps, tables, parts, self._changes)
        found = self._step(maps, version, walk, expected)
        if found is not None:
            del self._passes[version]
            self._told[version] = found
        return self._told[version]

    def _step(self, maps: PinnedMaps, version: int, walk: _Pass, expected: Expected) -> list[str] | None:
        """The next part of a walk: what ends it, None where it goes on."""
        looked_at = 0
        for part in walk.parts:
            stray = self._strays(version, part, walk, expected)
            if stray:
                return [f"address{version} holds {stray} entries that no rule made"]
            if not _is_filtered(maps, version, part[0]):
                return [f"address_filter lacks bits of address{version}"]
            looked_at += len(part[0])
            if looked_at >= _ENTRIES_A_LOOK:
                return None
        return self._missing(maps, version, walk, expected)

    def _strays(self, version: int, part: tuple[Records, Records], walk: _Pass, expected: Expected) -> int:
        keys, values = encoded_keys(version, part[0]), part[1]
        ranks = np.where(values["since"] <= self._epoch(), values["rank"], values["old_rank"])
        is_live = ranks != RANK_NONE
        walk.seen.append(keys[is_live])
        return _count_strays(version, keys[is_live], ranks[is_live], values["handle"][is_live], expected)

    def _missing(self, maps: PinnedMaps, version: int, walk: _Pass, expected: Expected) -> list[str]:
        """At the end of a walk: entries that should have been met."""
        wanted = expected.winners(version).keys
        if sum(map(len, walk.seen)) == len(wanted):
            return []  # each that was met is wanted
        seen = np.concatenate([no_entries(version).keys, *walk.seen])
        missing = wanted[~np.isin(wanted, seen)]
        if len(missing) and walk.changes != self._changes:
            # What came since may stand in a part that was walked before.
            if len(missing) > _ENTRIES_A_LOOK:
                return self._told[version]  # a list came: the next walk meets it
            missing = missing[~_are_there(maps, version, _records(version, missing))]
        return [f"address{version} lacks {len(missing)} entries"] if len(missing) else []


def _parts(maps: PinnedMaps, version: int) -> Iterator[tuple[Records, Records]]:
    yield from maps[f"address{version}"].dump(PREFIX[version], ADDRESS_ENTRY, _ENTRIES_A_LOOK)
    if version == 4:
        yield from rows_in_use(maps).dump(_ENTRIES_A_LOOK)


def _are_there(maps: PinnedMaps, version: int, keys: Records) -> npt.NDArray[np.bool_]:
    there, _ = maps[f"address{version}"].lookup_many(keys, ADDRESS_ENTRY)
    return there | (rows_in_use(maps).find(numbers4(keys)) >= 0) if version == 4 else there


def _tables(maps: PinnedMaps, version: int) -> list[int]:
    """Ids of the maps that hold a family's entries."""
    names = [f"address{version}"]
    if version == 4:
        names += [f"address_rows{slot}" for slot in range(C["ROWS_SLOTS"])]
    return [maps[name].info.id for name in names]


def _count_strays(version: int, keys: Keys, ranks: Numbers, handles: Numbers, expected: Expected) -> int:
    order = np.argsort(keys, kind="stable")
    found = expected.find(version, keys[order])
    if len(found) != len(keys):
        return len(keys) - len(found)
    return int(np.count_nonzero((found.ranks != ranks[order]) | (found.handles != handles[order])))


def _records(version: int, keys: Keys) -> Records:
    """Encoded keys as the map has them."""
    zeros = np.zeros(len(keys), np.uint32)
    return entries_key_records(Entries(version, keys, zeros, zeros))


def _is_filtered(maps: PinnedMaps, version: int, keys: Records) -> bool:
    """Whether packets find these keys behind the filter."""
    wanted = marks(version, keys, int(maps.control["filter_mask"]))
    words = maps.arrays["address_filter"]["bits"]
    return bool((words[wanted.places] & wanted.bits == wanted.bits).all())


def _ours(control: bytes, maps: PinnedMaps) -> bytes:
    """Of the control words those that rules decide."""
    words = np.frombuffer(control, maps.arrays["control_map"].dtype).copy()
    for name in _NOT_OURS:
        words[name] = 0
    return words.tobytes()


def _sum(maps: PinnedMaps, name: str) -> int:
    if name == _VECTORS:
        return zlib.crc32(maps.vectors.view(np.uint8).data)
    if name in _POLICY_HASHES:
        table = maps[name]
        dtypes = np.dtype(f"V{table.info.key_size}"), np.dtype(f"V{table.info.value_size}")
        found = 0
        for keys, values in table.dump(*dtypes):  # in the order of the buckets: the same while nobody writes
            found = zlib.crc32(values.tobytes(), zlib.crc32(keys.tobytes(), found))
        return found
    return zlib.crc32(maps.arrays[name].view(np.uint8).data)
