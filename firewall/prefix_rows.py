"""Prefixes by the million as sortable rows, to compare lists with each other.

Owns the row: its length and its address, as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from firewall.address import Prefix
from firewall.address_list import PrefixColumns

Rows = npt.NDArray[np.bytes_]


def rows_of(columns: Iterable[PrefixColumns], version: int) -> Rows:
    """Of one IP version, sorted, each once."""
    kind = f"S{1 + (4 if version == 4 else 16) + 1}"
    found = [_rows(each) for each in columns if each.version == version]
    return np.unique(np.concatenate(found)) if found else np.empty(0, kind)


def _rows(columns: PrefixColumns) -> Rows:
    """Behind each stands a byte that is not 0: numpy takes zeros off the end of bytes."""
    rows = np.ones((len(columns), columns.addresses.shape[1] + 2), np.uint8)
    rows[:, 0], rows[:, 1:-1] = columns.lengths, columns.addresses
    return rows.reshape(-1).view(f"S{rows.shape[1]}")


def prefixes_of_rows(rows: Rows, version: int) -> list[Prefix]:
    return [Prefix(version, int.from_bytes(row[1:-1], "big"), row[0]) for row in rows.tolist()]
