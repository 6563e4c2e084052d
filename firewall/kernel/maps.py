"""Our maps, opened from their pins.

Owns the list of maps, opening and closing them, and the mapped arrays. Performs no change: datapath.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firewall.kernel.bpf import Map, pin
from firewall.layout import (
    CONTROL,
    ENTRY_COUNTER,
    FRONT_ROW,
    INTERFACE_SLOT,
    LAYOUT,
    POLICY,
    POLICY_RULE,
    SPAN,
    C,
)

HASHES = (
    "address4_maps",
    "address6_maps",
    "rows_maps",
    "address4",
    "address6",
    "address_rows0",
    "address_rows1",
    "policy_iface",
    "policy_search",
    "policy_counters",
    "counters",
    "scratch",
)
ARRAYS = {
    "control_map": CONTROL,
    "address_filter": LAYOUT.structs["filter_word"],
    "address_front": FRONT_ROW,
    "policy_heads": POLICY,
    "policy_index4": LAYOUT.structs["index_pair"],
    "policy_ranges4": LAYOUT.structs["interval4"],
    "policy_ranges6": LAYOUT.structs["interval6"],
    "policy_protocol": LAYOUT.structs["vector_number"],
    "policy_port": LAYOUT.structs["port_pair"],
    "policy_icmp": LAYOUT.structs["vector_number"],
    "policy_lines": LAYOUT.structs["line"],
    "policy_rules": POLICY_RULE,
    "policy_sets_of": SPAN,
    "policy_named": LAYOUT.structs["named_set"],
    "policy_set4": LAYOUT.structs["set_prefix4"],
    "policy_set6": LAYOUT.structs["set_prefix6"],
    "entry_counters": ENTRY_COUNTER,
    "interface_slots": INTERFACE_SLOT,
}
# The reporter's own. Its way in (a map a program type) belongs to one set of programs; nothing here is worth keeping.
REPORT_WAYS = ("report_xdp", "report_tc")
REPORTING = ("reports", "report_rooms", "report_buckets", *REPORT_WAYS)
# The same of the programs for rules that observe, and of those that count entries of sets.
OTHER_WAYS = ("observe_xdp", "observe_tc", "entries_xdp", "entries_tc")
# What the programs that count entries of sets use alone. Those are led to by a map that the kernel empties when nobody
# holds it, so where all pins went these maps went too.
COUNTING = ("policy_sets_of", "policy_named", "policy_set4", "policy_set6", "entry_counters")
KEPT = (*HASHES, *(name for name in ARRAYS if name not in COUNTING), "policy_vectors")
NAMES = (*KEPT, *COUNTING, *REPORTING, *OTHER_WAYS)


def vector_words(size: int) -> int:
    """Words of a vector of so many bytes, beside its summary: struct vector in bpf/maps.h."""
    return next(words for words in range(size // 8, 0, -1) if words + -(-words // 64) == size // 8)


class PinnedMaps:
    """The maps below pin_root/maps: `maps` by name, `arrays` shared with the kernel by name.

    Raises FileNotFoundError where one is missing.
    """

    def __init__(self, pin_root: Path, names: Sequence[str] = NAMES) -> None:
        """`names`: all, or KEPT."""
        self.maps: dict[str, Map] = {}
        try:
            for name in names:
                self.maps[name] = Map.pinned(pin_root / "maps" / name)
        except BaseException:
            self.close()
            raise
        self.arrays: dict[str, npt.NDArray[np.void]] = {
            name: self.maps[name].mapped(dtype) for name, dtype in ARRAYS.items() if name in self.maps
        }
        vectors = self.maps["policy_vectors"]
        words = vector_words(vectors.info.value_size)
        summaries = vectors.info.value_size // 8 - words
        vector = np.dtype([("summary", "<u8", (summaries,)), ("word", "<u8", (words,))])
        self.vectors = vectors.mapped(vector)

    def replace_addresses(self, version: int, entries: Map, pins: Path) -> None:
        """Puts a filled table in the place of the present one; packets meet the one or the other, whole."""
        self._replace(f"address{version}", entries, f"address{version}_maps", 0, pins)

    def _replace(self, name: str, fresh: Map, outer: str, slot: int, pins: Path) -> None:
        beside = pins / "maps" / f"{name}_new"
        try:
            beside.unlink(missing_ok=True)
            pin(fresh.fd, beside)
            self.maps[outer].point_at(slot, fresh)
            beside.rename(pins / "maps" / name)
        except BaseException:
            fresh.close()
            raise
        old = self.maps.get(name)
        self.maps[name] = fresh
        if old is not None:
            old.close()

    def point_at_addresses(self) -> None:
        """Makes the programs use the pinned tables, also where a crash came between the steps of a replacement."""
        for version in (4, 6):
            self.maps[f"address{version}_maps"].point_at(0, self.maps[f"address{version}"])
        for slot in range(C["ROWS_SLOTS"]):
            self.maps["rows_maps"].point_at(slot, self.rows(slot))

    # -- rows of large IPv4 tables

    @property
    def live_rows(self) -> tuple[int, int] | None:
        """Which of the two arrays packets look into, and how many buckets it has; None: the front."""
        word = int(self.control["rows"])
        slot = word % C["ROWS_SLOTS"]
        return (slot, self.rows(slot).info.max_entries) if word else None

    def use_rows(self, slot: int, buckets: int) -> None:
        self.control["rows"] = buckets * C["ROWS_SLOTS"] + slot

    def rows(self, slot: int) -> Map:
        return self.maps[f"address_rows{slot}"]

    def replace_rows(self, slot: int, fresh: Map, pins: Path) -> None:
        """Of the two arrays the one that no packet looks into."""
        self._replace(f"address_rows{slot}", fresh, "rows_maps", slot, pins)

    def __getitem__(self, name: str) -> Map:
        return self.maps[name]

    @property
    def control(self) -> np.void:
        """The one element of control_map; assigning to its fields writes to the kernel."""
        return self.arrays["control_map"][0]  # type: ignore[no-any-return]

    def close(self) -> None:
        for each in self.maps.values():
            each.close()
        self.maps.clear()
