"""What stands at a prefix of the address tables: one entry, or entries by the million as columns. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Entry(NamedTuple):
    """What an address table holds for a prefix: the winning rule. Sorted, the first wins."""

    rank: int
    handle: int


class Key(NamedTuple):
    """A prefix in one of the lists; `scope` is hook << 1 | side (bpf/layout.h)."""

    version: int
    scope: int
    length: int
    address: int


@dataclass(frozen=True)
class Entries:
    """Entries of one IP version as columns, sorted. `keys` are encoded as firewall/address_index.py has it."""

    version: int
    keys: npt.NDArray[Any]
    ranks: npt.NDArray[np.uint32]
    handles: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, rows: npt.NDArray[np.int64] | slice) -> Entries:
        """In the rows' order."""
        return Entries(self.version, self.keys[rows], self.ranks[rows], self.handles[rows])

    def only(self, mask: npt.NDArray[np.bool_]) -> Entries:
        return Entries(self.version, self.keys[mask], self.ranks[mask], self.handles[mask])
