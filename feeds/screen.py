"""What of a list from outside may go into a set, and whether the list may be taken at all.

Owns the two guards that stand between somebody else's list and this host: entries that would cut off the host itself
or its private networks are left out, and a list that is empty, broken or has lost too much is refused, so that the last
good one stays in force.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import numpy as np
import numpy.typing as npt

from feeds.errors import FeedFailed
from firewall.address import BITS, Prefix, parse_prefix
from firewall.address_list import PrefixColumns
from firewall.lists.collector import ReadList
from firewall.lists.prefix_text import masks
from firewall.prefix_rows import rows_of
from firewall.set_entries import EntryColumns

# Private, shared and link-local networks, loopback, and the address of who has none yet (RFC 1918, 6598, 3927, 4193,
# 4291, 1122). Firehol's level 1 has them, and so blocks whoever administers from a private network.
RESERVED = tuple(
    parse_prefix(text)
    for text in (
        "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.168.0.0/16", "::/127", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip
_TOLD = 20
_SMALL = 20  # entries: a list of a few may lose most of them any day


@dataclass(frozen=True)
class Screened:
    """`reserved`: entries that overlap such networks; `own`: others that hold this host's addresses; `told`: the first
    of both; left out unless they were to be kept. `never_drop`: entries that never_drop spares."""

    columns: tuple[EntryColumns, ...]
    reserved: int = 0
    own: int = 0
    never_drop: int = 0
    told: tuple[str, ...] = ()

    @property
    def entries(self) -> int:
        return sum(len(each) for each in self.columns)


def screened(
    columns: Iterable[EntryColumns], own: Collection[Prefix], never_drop: Sequence[Prefix], keep: bool
) -> Screened:
    """`keep`: they are counted and stay."""
    kept: list[EntryColumns] = []
    counts = [0, 0, 0]
    told: list[str] = []
    for each in columns:
        private, mine, spared = (overlapping(each.prefixes, some) for some in (RESERVED, own, never_drop))
        found = private, mine & ~private, spared
        counts = [count + int(marks.sum()) for count, marks in zip(counts, found, strict=True)]
        wrong = private | mine
        told += list(_texts(each.prefixes, wrong))[: _TOLD - len(told)]
        kept.append(each if keep or not wrong.any() else only(each, ~wrong))
    return Screened(tuple(each for each in kept if len(each)), counts[0], counts[1], counts[2], tuple(told))


def overlapping(columns: PrefixColumns, prefixes: Iterable[Prefix]) -> npt.NDArray[np.bool_]:
    """Which rows have an address in common with any of the prefixes."""
    found = np.zeros(len(columns), np.bool_)
    size = BITS[columns.version] // 8
    for prefix in prefixes:
        if prefix.version == columns.version:
            wanted = np.frombuffer(prefix.address.to_bytes(size, "big"), np.uint8)
            common = masks(np.minimum(columns.lengths, np.uint8(prefix.length)), size)
            found |= (((columns.addresses ^ wanted) & common) == 0).all(axis=1)
    return found


def only(entries: EntryColumns, wanted: npt.NDArray[np.bool_]) -> EntryColumns:
    prefixes = entries.prefixes
    comments = entries.comments
    return EntryColumns(
        PrefixColumns(prefixes.version, prefixes.lengths[wanted], prefixes.addresses[wanted]),
        None if entries.expires_at is None else entries.expires_at[wanted],
        None if comments is None else [comments[row] for row in np.flatnonzero(wanted).tolist()],
    )


def _texts(columns: PrefixColumns, wanted: npt.NDArray[np.bool_]) -> Iterator[str]:
    for row in np.flatnonzero(wanted)[:_TOLD].tolist():
        yield f"{ip_address(columns.addresses[row].tobytes())}/{columns.lengths[row]}"


def distinct(columns: Sequence[PrefixColumns]) -> int:
    return sum(len(rows_of(columns, version)) for version in BITS)


def refuse_what_is_broken(found: ReadList) -> None:
    """Raises FeedFailed."""
    if found.bad and found.bad >= found.entries:
        first = found.problems[0]
        detail = (
            f"{found.bad:,} bad lines and {found.entries:,} entries; {first.pointer[1:].replace('/', ' ')}: "
        )
        raise FeedFailed("broken", detail + first.detail, "is this a list, and of this format?")
    if not found.entries:
        raise FeedFailed("empty", "the list is empty", "the last good one stays in force")


def refuse_what_shrank(size: int, before: int, most_share: float) -> None:
    """`before`: entries of the last good list. Raises FeedFailed."""
    if before > _SMALL and size < before * (1 - most_share):
        lost = (before - size) / before
        raise FeedFailed(
            "shrunk",
            f"the list has {size:,} entries and had {before:,}: it lost {lost:.0%}, more than {most_share:.0%}",
            "the last good one stays in force; look at it, then refresh with force to take it",
        )
