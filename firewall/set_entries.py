"""Entries of sets by the million, as columns.

Owns the value alone: formats make it, sets keep it, feeds bring it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.address_list import PrefixColumns


@dataclass(frozen=True)
class EntryColumns:
    """Entries of one IP version, a row each. `expires_at`: seconds since 1970, UTC, 0 where an entry stays until it is
    deleted; None where all do. `comments`: None where no entry has one. Prefixes may come more than once: the last one
    counts."""

    prefixes: PrefixColumns
    expires_at: npt.NDArray[np.float64] | None = None
    comments: Sequence[str] | None = None

    @property
    def version(self) -> int:
        return self.prefixes.version

    def __len__(self) -> int:
        return len(self.prefixes)


class SetEntry(NamedTuple):
    """One of them: `expires_at` seconds since 1970, UTC."""

    prefix: Prefix
    expires_at: float | None = None
    comment: str | None = None


def entry_columns(entries: Iterable[SetEntry]) -> list[EntryColumns]:
    """By IP version, in the order that they come in."""
    by_version: dict[int, list[SetEntry]] = {version: [] for version in BITS}
    for each in entries:
        by_version[each.prefix.version].append(each)
    return [_columns(version, mine) for version, mine in by_version.items()]


def _columns(version: int, entries: Sequence[SetEntry]) -> EntryColumns:
    size = BITS[version] // 8
    raw = b"".join(each.prefix.address.to_bytes(size, "big") for each in entries)
    prefixes = PrefixColumns(
        version,
        np.array([each.prefix.length for each in entries], np.uint8),
        np.frombuffer(raw, np.uint8).reshape(-1, size),
    )
    times = np.array([each.expires_at or 0.0 for each in entries], np.float64)
    return EntryColumns(prefixes, times, [each.comment or "" for each in entries])
