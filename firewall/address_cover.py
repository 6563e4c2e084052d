"""Which entries of the address tables have all their packets taken by other rules, by the million.

Owns the search over columns: a lookup a prefix length for all longer entries at once. What that means for a rule is
ruleset_analysis.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.address import BITS
from firewall.address_index import Keys, encode, key_columns
from firewall.addresses import AddressTables
from firewall.containment import Match, Ranges
from firewall.datapath import Entries
from firewall.layout import C

Codes = npt.NDArray[np.uint64]  # rank, handle, whether it is a policy rule: the smaller wins
NOBODY = np.uint64((1 << 64) - 1)
_RANK_SHIFT, _HANDLE_SHIFT = 33, 1
_SIDES = C["SIDE_COUNT"]


@dataclass(frozen=True)
class Places:
    """A row for each prefix of each rule: its handle and code; of the rules that take all packets of it the code of the
    first, and of the first behind it."""

    handles: npt.NDArray[np.uint32]
    codes: Codes
    before: Codes
    behind: Codes


def codes_of(ranks: npt.NDArray[Any], handles: npt.NDArray[Any], is_policy: bool = False) -> Codes:
    code = ranks.astype(np.uint64) << np.uint64(_RANK_SHIFT) | handles.astype(np.uint64) << np.uint64(
        _HANDLE_SHIFT
    )
    return code | np.uint64(is_policy)


def ranks_of(codes: Codes) -> Codes:
    return codes >> np.uint64(_RANK_SHIFT)


def handles_of(codes: Codes) -> Codes:
    return codes >> np.uint64(_HANDLE_SHIFT) & np.uint64((1 << 32) - 1)


def is_policy(codes: Codes) -> npt.NDArray[np.bool_]:
    return (codes & np.uint64(1)).astype(np.bool_)


def places(tables: AddressTables, plain: Sequence[tuple[int, int, Match]]) -> Places:
    """Of all entries, losers too. `plain`: rank, handle and match of the policy rules that ask for addresses alone."""
    parts = []
    losers: dict[int, tuple[list[Any], list[int], list[int]]] = {version: ([], [], []) for version in BITS}
    for key, entries in tables.losers().items():
        keys, ranks, handles = losers[key.version]
        for each in entries:
            keys.append(encode(key))
            ranks.append(each.rank)
            handles.append(each.handle)
    for version in BITS:
        winners, hidden = tables.winners(version), tables.hidden(version)
        taken = _Taken(winners, plain)
        parts.append((winners.handles, taken.codes, taken.before, taken.behind))
        if len(hidden):
            parts.append(taken.of_losers(hidden.keys, hidden.ranks, hidden.handles))
        keys, ranks, handles = losers[version]
        if keys:
            parts.append(
                taken.of_losers(np.array(keys, winners.keys.dtype), np.array(ranks), np.array(handles))
            )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Places(columns[0].astype(np.uint32), columns[1], columns[2], columns[3])


class _Taken:
    """Of one IP version: what takes the packets of each winner."""

    def __init__(self, winners: Entries, plain: Sequence[tuple[int, int, Match]]) -> None:
        self._winners = winners
        self._version = winners.version
        self.codes = codes_of(winners.ranks, winners.handles)
        self.before = np.full(len(winners), NOBODY)
        self.behind = np.full(len(winners), NOBODY)
        if not len(winners):
            return
        self._scopes, self._lengths, self._addresses = key_columns(winners.version, winners.keys)
        for scope in np.unique(self._scopes).tolist():
            self._look_at_list(scope, plain)

    def _look_at_list(self, scope: int, plain: Sequence[tuple[int, int, Match]]) -> None:
        mine = slice(*np.searchsorted(self._scopes, [scope, scope + 1]).tolist())
        for length, parents in self._by_length(scope):
            longer = slice(mine.start + int(np.searchsorted(self._lengths[mine], length, "right")), mine.stop)
            if longer.start < longer.stop:
                self._look_up(longer, parents, self._shortened(longer, scope, length))
        for length, parents in self._by_length(scope ^ C["SIDE_DESTINATION"]):
            if length == 0:
                found = np.full(mine.stop - mine.start, self.codes[parents.start])
                self._note(mine, found)
        for rank, handle, match in plain:
            self._note_plain(mine, scope, rank, handle, match)

    def _by_length(self, scope: int) -> Iterator[tuple[int, slice]]:
        start, end = np.searchsorted(self._scopes, [scope, scope + 1]).tolist()
        lengths, first, counts = np.unique(self._lengths[start:end], return_index=True, return_counts=True)
        for length, at, count in zip(lengths.tolist(), first.tolist(), counts.tolist(), strict=True):
            yield length, slice(start + at, start + at + count)

    def _shortened(self, rows: slice, scope: int, length: int) -> Keys:
        """The keys of the prefixes of a length that the entries lie in."""
        if self._version == 4:
            mask = np.uint64((1 << 32) - (1 << (32 - length)))
            head = np.uint64(scope << 40 | length << 32)
            return np.asarray(self._winners.keys[rows] & mask | head)
        keys = np.empty((rows.stop - rows.start, 18), np.uint8)
        keys[:, 0], keys[:, 1] = scope, length
        keys[:, 2:] = self._addresses[rows] & _mask6(length)
        return keys.reshape(-1).view("S18")

    def _look_up(self, rows: slice, parents: slice, wanted: Keys) -> None:
        keys = self._winners.keys[parents]
        at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        found = np.where(keys[at] == wanted, self.codes[parents][at], NOBODY)
        self._note(rows, found)

    def _note(self, rows: slice, found: Codes) -> None:
        """Who takes all packets of each row, or NOBODY."""
        own = self.codes[rows]
        other = handles_of(found) != handles_of(own)
        is_before = other & (ranks_of(found) <= ranks_of(own))
        self.before[rows] = np.minimum(self.before[rows], np.where(is_before, found, NOBODY))
        is_behind = other & ~is_before
        self.behind[rows] = np.minimum(self.behind[rows], np.where(is_behind, found, NOBODY))

    def _note_plain(self, rows: slice, scope: int, rank: int, handle: int, match: Match) -> None:
        hook, side = scope >> C["SCOPE_HOOK_BIT"], scope & C["SIDE_DESTINATION"]
        if hook not in match.hooks or self._version not in match.versions:
            return
        everything: Ranges = ((0, (1 << BITS[self._version]) - 1),)
        asked = [
            everything if each is None else each[self._version]
            for each in (match.sources, match.destinations)
        ]
        if asked[_SIDES - 1 - side] != everything:
            return
        inside = self._inside(rows, asked[side])
        code = codes_of(np.array([rank]), np.array([handle]), is_policy=True)[0]
        self._note(rows, np.where(inside, code, NOBODY))

    def _inside(self, rows: slice, ranges: Ranges) -> npt.NDArray[np.bool_]:
        """Which entries lie in one of some ranges of addresses."""
        size = BITS[self._version] // 8
        first = np.ascontiguousarray(self._addresses[rows]).view(f"S{size}").reshape(-1)
        last = np.ascontiguousarray(self._addresses[rows] | ~_masks(size, self._lengths[rows]))
        begins = np.array([each[0].to_bytes(size, "big") for each in ranges], f"S{size}")
        ends = np.array([each[1].to_bytes(size, "big") for each in ranges], f"S{size}")
        at = np.searchsorted(begins, first, "right") - 1
        return np.asarray((at >= 0) & (last.view(f"S{size}").reshape(-1) <= ends[at]))

    def of_losers(
        self, keys: Keys, ranks: npt.NDArray[Any], handles: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[Any], Codes, Codes, Codes]:
        """A loser's packets are taken by the winner of its prefix, and by whoever takes that one's."""
        at = np.searchsorted(self._winners.keys, keys)
        codes = codes_of(ranks, handles)
        above = np.where(handles_of(self.before[at]) == handles_of(codes), NOBODY, self.before[at])
        return handles, codes, np.minimum(self.codes[at], above), np.full(len(keys), NOBODY)


def _mask6(length: int) -> npt.NDArray[np.uint8]:
    mask = ((1 << 128) - (1 << (128 - length))).to_bytes(16, "big")
    return np.frombuffer(mask, np.uint8)


def _masks(size: int, lengths: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The mask of each length, as bytes."""
    bits = size * 8
    table = np.array(
        [list(((1 << bits) - (1 << (bits - length))).to_bytes(size, "big")) for length in range(bits + 1)],
        np.uint8,
    )
    return table[lengths]
