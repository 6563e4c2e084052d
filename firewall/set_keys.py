"""The prefixes of a set as sorted keys, by the million: what is in it, and what a change of it brings and takes.

Owns the arithmetic over such columns: differences, membership, and the ranges of addresses that a set covers. Keys are
those of firewall/address_index.py with scope 0; a list's scope is put in where one is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.address_entries import Key
from firewall.address_index import Keys, encode, encode_many, key_columns, no_entries, place_of
from firewall.address_list import PrefixColumns

_SCOPE_SHIFT4 = np.uint64(40)
_MASK4 = np.uint64((1 << 40) - 1)
_FEW = 16  # entries


class PrefixRanges(NamedTuple):
    """Disjoint prefixes, sorted: the first address of each and the first behind it, 0 where that is past the last."""

    starts: npt.NDArray[np.generic]
    ends: npt.NDArray[np.generic]
    lengths: npt.NDArray[np.uint8]

    def only(self, rows: slice | npt.NDArray[np.int64]) -> PrefixRanges:
        return PrefixRanges(self.starts[rows], self.ends[rows], self.lengths[rows])


@dataclass(frozen=True)
class SetKeys:
    """Sorted and distinct, by IP version."""

    four: Keys
    six: Keys

    def of(self, version: int) -> Keys:
        return self.four if version == 4 else self.six

    def __len__(self) -> int:
        return len(self.four) + len(self.six)

    @cached_property
    def _lengths(self) -> dict[int, list[int]]:
        """Which prefix lengths there are."""
        return {version: np.unique(key_columns(version, self.of(version))[1]).tolist() for version in BITS}

    def covering(self, version: int, address: int, most: int | None = None) -> Iterator[Prefix]:
        """Its prefixes that an address lies in, the longest first; `most`: none longer than this."""
        bits = BITS[version]
        for length in reversed(self._lengths[version]):
            masked = address >> (bits - length) << (bits - length)
            if (most is None or length <= most) and self.has(Prefix(version, masked, length)):
                yield Prefix(version, masked, length)

    def matches(self, version: int, address: int) -> bool:
        return next(self.covering(version, address), None) is not None

    def texts(self) -> list[str]:
        """One by one: for few."""
        return [
            str(Prefix(version, int.from_bytes(address.tobytes(), "big"), length))
            for version in BITS
            for length, address in zip(*_columns(version, self.of(version)), strict=True)
        ]

    def has(self, prefix: Prefix) -> bool:
        key = Key(prefix.version, 0, prefix.length, prefix.address)
        return place_of(self.of(prefix.version), encode(key)) is not None

    @cached_property
    def ranges4(self) -> PrefixRanges:
        """The same addresses without prefixes that lie in others."""
        return _ranges(4, self.four)

    @cached_property
    def ranges6(self) -> PrefixRanges:
        return _ranges(6, self.six)

    def inside(self, version: int, windows: PrefixRanges) -> SetKeys:
        """What is in some of its prefixes or is one, of one IP version."""
        parts = [no_entries(version).keys]
        keys = self.of(version)
        for firsts, lasts in _window_edges(version, windows):
            begins = np.searchsorted(keys, firsts, "left")
            pasts = np.searchsorted(keys, lasts, "right")
            parts += [keys[a:b] for a, b in zip(begins.tolist(), pasts.tolist(), strict=True) if a < b]
        found = np.sort(np.concatenate(parts))
        return SetKeys(found, NO_KEYS.six) if version == 4 else SetKeys(NO_KEYS.four, found)

    def ranges(self, version: int) -> PrefixRanges:
        return self.ranges4 if version == 4 else self.ranges6

    def changed(self, come: SetKeys, gone: SetKeys) -> SetKeys:
        """`gone` is in it, `come` is not."""
        return SetKeys(*(with_others(without(self.of(v), gone.of(v)), come.of(v)) for v in (4, 6)))

    def minus(self, other: SetKeys) -> SetKeys:
        return SetKeys(*(each[~is_in(each, of)] for each, of in zip(self._both, other._both, strict=True)))

    def common(self, other: SetKeys) -> SetKeys:
        return SetKeys(*(each[is_in(each, of)] for each, of in zip(self._both, other._both, strict=True)))

    @property
    def _both(self) -> tuple[Keys, Keys]:
        return self.four, self.six


@dataclass(frozen=True)
class SetDelta:
    """A change of what is in a set."""

    before: SetKeys
    after: SetKeys
    come: SetKeys
    gone: SetKeys

    @property
    def is_empty(self) -> bool:
        return not len(self.come) and not len(self.gone)

    @property
    def is_small(self) -> bool:
        """So that it is worth looking at the places alone where something changes."""
        return len(self.come) + len(self.gone) <= _FEW


NO_KEYS = SetKeys(no_entries(4).keys, no_entries(6).keys)


def set_keys(columns: Iterable[PrefixColumns]) -> SetKeys:
    found: dict[int, list[Keys]] = {4: [NO_KEYS.four], 6: [NO_KEYS.six]}
    for each in columns:
        found[each.version].append(encode_many(each.version, 0, each.lengths, each.addresses))
    return SetKeys(*(distinct(np.concatenate(found[version])) for version in (4, 6)))


def set_keys_of(prefixes: Iterable[Prefix]) -> SetKeys:
    """Of few."""
    keys = [Key(each.version, 0, each.length, each.address) for each in prefixes]
    mine = {version: [encode(key) for key in keys if key.version == version] for version in BITS}
    return SetKeys(*(distinct(np.array(mine[each], no_entries(each).keys.dtype)) for each in (4, 6)))


def joined(parts: Iterable[SetKeys]) -> SetKeys:
    """What is in any of them."""
    every = [NO_KEYS, *parts]
    return SetKeys(*(distinct(np.concatenate([each.of(version) for each in every])) for version in BITS))


def delta(before: SetKeys, come: SetKeys, gone: SetKeys) -> SetDelta:
    """`gone` is in the set, `come` is not."""
    made = SetDelta(before, before.changed(come, gone), come, gone)
    if made.is_small:
        for version in BITS:
            _carry_ranges(version, made)
    return made


def windows_of(version: int, changes: Iterable[SetDelta]) -> PrefixRanges:
    """The prefixes that come or go, without those that lie in others: elsewhere no address is in other entries than
    before."""
    keys = [each.of(version) for change in changes for each in (change.come, change.gone)]
    return _ranges(version, np.concatenate(keys))


def _carry_ranges(version: int, change: SetDelta) -> None:
    """The ranges of the set after it, from those before, where somebody asked for these: to sort a million anew takes
    a tenth of a second."""
    name = f"ranges{version}"
    known: PrefixRanges | None = vars(change.before).get(name)
    if known is not None:
        vars(change.after)[name] = _spliced_ranges(version, known, change)


def _spliced_ranges(version: int, before: PrefixRanges, change: SetDelta) -> PrefixRanges:
    windows = windows_of(version, (change,))
    parts: list[PrefixRanges] = []
    at = 0
    for number, start in enumerate(windows.starts):
        end = windows.ends[number]
        around = int(np.searchsorted(before.starts, start, "right")) - 1
        is_wider = around >= 0 and before.lengths[around] < windows.lengths[number]
        if is_wider and (not before.ends[around] or before.ends[around] > start):
            continue  # it lies in an entry that stays
        begin = int(np.searchsorted(before.starts, start, "left"))
        past = len(before.starts) if not end else int(np.searchsorted(before.starts, end, "left"))
        inside = change.after.inside(version, windows.only(slice(number, number + 1)))
        parts += [before.only(slice(at, begin)), _ranges(version, inside.of(version))]
        at = past
    if not parts:
        return before
    parts.append(before.only(slice(at, None)))
    starts, ends, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
    return PrefixRanges(starts, ends, lengths)


def between(before: SetKeys, after: SetKeys) -> SetDelta:
    parts = [_differences(before.of(version), after.of(version)) for version in BITS]
    come, gone = (SetKeys(*each) for each in zip(*parts, strict=True))
    return SetDelta(before, after, come, gone)


def _differences(before: Keys, after: Keys) -> tuple[Keys, Keys]:
    """What comes and what goes, by one search: of two million keys each search counts."""
    if not len(before):
        return after, before
    at = np.searchsorted(before, after).clip(max=len(before) - 1)
    stays = before[at] == after
    goes = np.ones(len(before), np.bool_)
    goes[at[stays]] = False
    return after[~stays], before[goes]


def distinct(keys: Keys) -> Keys:
    """Sorted, each once: a third of what np.unique takes, which hashes them."""
    ordered = np.sort(keys)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def is_in(keys: Keys, others: Keys) -> npt.NDArray[np.bool_]:
    """Which of the keys are among others, which are sorted."""
    if not len(others):
        return np.zeros(len(keys), np.bool_)
    at = np.searchsorted(others, keys).clip(max=len(others) - 1)
    return np.asarray(others[at] == keys)


def without(keys: Keys, gone: Keys) -> Keys:
    """Sorted keys without some of them."""
    if not len(gone):
        return keys
    if len(gone) == len(keys):
        return keys[:0]
    stays = np.ones(len(keys), np.bool_)
    stays[np.searchsorted(keys, gone)] = False
    return keys[stays]


def with_others(keys: Keys, come: Keys) -> Keys:
    """Sorted keys and others, sorted, that are not among them."""
    if not len(keys):
        return come
    return np.insert(keys, np.searchsorted(keys, come), come) if len(come) else keys


def scoped(version: int, keys: Keys, scope: int) -> Keys:
    """As keys of a list of the address tables."""
    if version == 4:
        return np.asarray(keys | np.uint64(scope) << _SCOPE_SHIFT4)
    rows = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 18).copy()
    rows[:, 0] = scope
    return rows.reshape(-1).view("S18")


def unscoped(version: int, keys: Keys) -> Keys:
    return np.asarray(keys & _MASK4) if version == 4 else scoped(version, keys, 0)


def rows_of_scope(version: int, keys: Keys, scope: int) -> slice:
    """Of sorted keys, those of one list."""
    edges = [encode(Key(version, each, 0, 0)) for each in (scope, scope + 1)]
    first, past = np.searchsorted(keys, np.array(edges, keys.dtype)).tolist()
    return slice(first, past)


def _columns(version: int, keys: Keys) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """Lengths and addresses."""
    _, lengths, addresses = key_columns(version, keys)
    return lengths.tolist(), addresses


def _ranges(version: int, keys: Keys) -> PrefixRanges:
    _, lengths, addresses = key_columns(version, keys)
    starts, lasts = _starts(version, addresses), _starts(version, addresses | ~_masks(version, lengths))
    order = np.lexsort((lengths, starts))
    starts, lasts, lengths = starts[order], lasts[order], lengths[order]
    # A prefix lies in another if one before it, in this order, reaches beyond its start.
    reach = np.maximum.accumulate(np.searchsorted(starts, lasts, "right"))
    is_outer = np.ones(len(starts), np.bool_)
    is_outer[1:] = reach[:-1] <= np.arange(1, len(starts))
    starts, lasts, lengths = starts[is_outer], lasts[is_outer], lengths[is_outer]
    return PrefixRanges(starts, _after(version, lasts), lengths)


def _window_edges(version: int, windows: PrefixRanges) -> Iterator[tuple[Keys, Keys]]:
    """Of each window the keys of its first and its last address at every length that is not shorter than its own."""
    bits, size = BITS[version], BITS[version] // 8
    for start, length in zip(windows.starts.tolist(), windows.lengths.tolist(), strict=True):
        first = start if version == 4 else int.from_bytes(start.ljust(size, b"\0"), "big")
        last = first | (1 << bits - length) - 1
        yield tuple(  # type: ignore[misc]
            np.array(
                [encode(Key(version, 0, each, edge)) for each in range(length, bits + 1)],
                no_entries(version).keys.dtype,
            )
            for edge in (first, last)
        )


def _starts(version: int, addresses: npt.NDArray[np.uint8]) -> npt.NDArray[np.generic]:
    rows = np.ascontiguousarray(addresses)
    return rows.view(">u4").reshape(-1).astype(np.uint64) if version == 4 else rows.view("S16").reshape(-1)


def _after(version: int, lasts: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if version == 4:
        return np.asarray((lasts.astype(np.uint64) + np.uint64(1)) & np.uint64((1 << 32) - 1))
    words = lasts.view(">u8").reshape(-1, 2).astype(np.uint64)
    words[:, 1] += np.uint64(1)
    words[:, 0] += words[:, 1] == 0
    return words.astype(">u8").view("S16").reshape(-1)


def _masks(version: int, lengths: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    bits = BITS[version]
    every = [((1 << bits) - (1 << (bits - length))).to_bytes(bits // 8, "big") for length in range(bits + 1)]
    return np.frombuffer(b"".join(every), np.uint8).reshape(bits + 1, -1)[lengths]
