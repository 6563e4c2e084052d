"""Entries that somebody asks for, as sorted keys with what belongs to each.

Owns that of an entry that is given twice the last one counts. Entries that are all alike, as those of most lists are,
cost their keys alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.address_index import Keys, encode_many
from firewall.set_entries import EntryColumns
from firewall.set_keys import NO_KEYS, SetKeys, distinct, set_keys

Times = npt.NDArray[np.float64]
Comments = npt.NDArray[np.object_]


class Each(NamedTuple):
    """What belongs to each of some keys; 0 and "" for nothing."""

    expires_at: Times
    comments: Comments

    def only(self, rows: npt.NDArray[np.intp]) -> Each:
        return Each(self.expires_at[rows], self.comments[rows])


@dataclass(frozen=True)
class Wanted:
    """`each`: by IP version, a row a key; where `differs` is false all have the one time and comment."""

    keys: SetKeys
    expires_at: float | None = None
    comment: str | None = None
    each: dict[int, Each] | None = None

    @property
    def differs(self) -> bool:
        return self.each is not None

    @property
    def has_particulars(self) -> bool:
        return self.differs or self.expires_at is not None or self.comment is not None

    def only(self, keys: SetKeys) -> Wanted:
        """Some of them."""
        if self.each is None:
            return Wanted(keys, self.expires_at, self.comment)
        rows = {version: np.searchsorted(self.keys.of(version), keys.of(version)) for version in (4, 6)}
        return Wanted(keys, each={version: mine.only(rows[version]) for version, mine in self.each.items()})

    def rows(self) -> Iterator[tuple[int, Keys, Sequence[float | None], Sequence[str | None]]]:
        """By IP version: keys, times and comments."""
        for version in (4, 6):
            keys = self.keys.of(version)
            if not len(keys):
                continue
            if self.each is None:
                yield version, keys, [self.expires_at] * len(keys), [self.comment] * len(keys)
            else:
                mine = self.each[version]
                times = [moment or None for moment in mine.expires_at.tolist()]
                yield version, keys, times, [text or None for text in mine.comments.tolist()]


def wanted(columns: Sequence[EntryColumns]) -> Wanted:
    parts: dict[int, list[EntryColumns]] = {4: [], 6: []}
    for some in columns:
        parts[some.version].append(some)
    ends = {moment for some in columns for moment in _ends(some)}
    if len(ends) <= 1 and not any(some.comments for some in columns):
        return Wanted(set_keys(some.prefixes for some in columns), next(iter(ends), 0.0) or None)
    found: dict[int, Keys] = {4: NO_KEYS.four, 6: NO_KEYS.six}
    each: dict[int, Each] = {}
    for version, mine in parts.items():
        keys = np.concatenate(
            [
                found[version],
                *(encode_many(version, 0, one.prefixes.lengths, one.prefixes.addresses) for one in mine),
            ]
        )
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        is_last = np.append(ordered[1:] != ordered[:-1], len(ordered) > 0)[: len(ordered)]
        found[version] = ordered[is_last]
        each[version] = _each(mine).only(order[is_last])
    times = distinct(np.concatenate([mine.expires_at for mine in each.values()]))
    comments = {text for mine in each.values() if mine.comments.any() for text in mine.comments.tolist()}
    keys_of_set = SetKeys(found[4], found[6])
    if len(times) > 1 or len(comments) > 1:
        return Wanted(keys_of_set, each=each)
    moment = float(times[0]) if len(times) else 0.0
    return Wanted(keys_of_set, moment or None, next(iter(comments), None) or None)


def _ends(some: EntryColumns) -> list[float]:
    """The moments that there are, or two of them."""
    if not len(some):
        return []
    return [0.0] if some.expires_at is None else distinct(some.expires_at)[:2].tolist()


def _each(columns: Sequence[EntryColumns]) -> Each:
    times, comments = [np.zeros(0)], [np.zeros(0, np.object_)]
    for one in columns:
        times.append(np.zeros(len(one)) if one.expires_at is None else np.asarray(one.expires_at, np.float64))
        texts = np.full(len(one), "", np.object_)
        if one.comments is not None:
            texts[:] = [text or "" for text in one.comments]
        comments.append(texts)
    return Each(np.concatenate(times), np.concatenate(comments))
