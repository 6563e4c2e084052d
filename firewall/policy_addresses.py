"""Prefixes to intervals: what the policy asks of an address, by sorted starts (bpf/layout.h, struct interval4).

Owns nested prefixes and which rules hold together for which addresses. Knows rules as bits only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.layout import SPAN, C
from firewall.policy_columns import START, Ints, Ranges, Starts

Words = npt.NDArray[np.uint64]
_BUCKETS = 1 << C["POLICY_INDEX_BITS"]


@dataclass(frozen=True)
class Intervals:
    """From each start to the next one, addresses of one vector. The first start is 0."""

    starts: Starts
    vectors: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.starts)

    def shifted(self, by: int) -> Intervals:
        """The same with other numbers of vectors."""
        return Intervals(self.starts, self.vectors + np.uint32(by))


class _Prefixes(NamedTuple):
    """Distinct prefixes: the places of their first start and of the first beyond, their length, their set of rules."""

    first: Ints
    beyond: Ints
    lengths: npt.NDArray[np.uint8]
    sets: Ints


def nowhere(version: int) -> Intervals:
    """All addresses have vector 0."""
    return Intervals(np.zeros(1, START[version]), np.zeros(1, np.uint32))


def address_intervals(ranges: Ranges, bits: Ints, anywhere: Words) -> tuple[Intervals, Words]:
    """Intervals, and the vectors that they name. `bits`: of each range's rule; `anywhere`: the vector of an address in
    no prefix, which is number 0 of those."""
    if not len(bits):
        zero = np.zeros(1, ranges.starts.dtype)
        return Intervals(zero, np.zeros(1, np.uint32)), anywhere[None]
    zero = np.zeros(1, ranges.starts.dtype)
    starts = np.unique(np.concatenate((zero, ranges.starts, ranges.ends)))
    sets = _RuleSets(len(anywhere) * 64)
    prefixes = _distinct(starts, ranges, bits, sets)
    owners, parents, own, levels = _painted(len(starts), prefixes, len(sets.members))
    vectors = np.zeros((len(parents), len(anywhere)), np.uint64)
    set_bits(vectors, *sets.pairs(own))
    vectors[0] = anywhere
    for first, beyond in levels:
        vectors[first:beyond] |= vectors[parents[first:beyond]]
    is_first = np.append(True, owners[1:] != owners[:-1])
    return Intervals(starts[is_first], owners[is_first].astype(np.uint32)), vectors


def set_bits(rows: Words, row: Ints, bit: Ints) -> None:
    values = np.left_shift(np.uint64(1), (bit & 63).astype(np.uint64))
    np.bitwise_or.at(rows, (row, bit >> 6), values)


class _RuleSets:
    """Distinct sets of rules, each a sorted array of bits; number 0 is the empty one."""

    def __init__(self, bit_count: int) -> None:
        self.members: list[Ints] = [np.zeros(0, np.int64)]
        self._numbers: dict[bytes, int] = {b"": 0}
        self._of_bit = np.zeros(bit_count, np.int64)

    def numbers(self, members: Ints, begins: Ints, ends: Ints) -> Ints:
        """Of the sets that stand one after the other in `members`."""
        numbers = np.zeros(len(begins), np.int64)
        is_single = ends - begins == 1
        single = members[begins[is_single]]
        distinct = np.unique(single)
        self._of_bit[distinct] = len(self.members) + np.arange(len(distinct))
        self.members += list(distinct[:, None])
        numbers[is_single] = self._of_bit[single]
        for at in np.flatnonzero(~is_single).tolist():
            some = members[begins[at] : ends[at]]
            number = self._numbers.setdefault(some.tobytes(), len(self.members))
            if number == len(self.members):
                self.members.append(some)
            numbers[at] = number
        return numbers

    def pairs(self, sets: Ints) -> tuple[Ints, Ints]:
        """Row and bit of all members, a row for each of `sets`."""
        members = [self.members[number] for number in sets.tolist()]
        rows = np.repeat(np.arange(len(members)), [len(each) for each in members])
        return rows, np.concatenate(members)


def _distinct(starts: Starts, ranges: Ranges, bits: Ints, sets: _RuleSets) -> _Prefixes:
    """A prefix that several rules name stands once, with all of their bits."""
    size = len(starts)
    first = np.searchsorted(starts, ranges.starts)
    beyond = np.searchsorted(starts, ranges.ends)
    beyond[beyond == 0] = size  # up to the last address
    places = first * (size + 1) + beyond
    order = np.lexsort((bits, places))
    places, members = places[order], bits[order]
    is_new = np.append(True, (places[1:] != places[:-1]) | (members[1:] != members[:-1]))
    order, places, members = order[is_new], places[is_new], members[is_new]
    begins = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
    ends = np.append(begins[1:], len(places))
    at = order[begins]
    return _Prefixes(first[at], beyond[at], ranges.lengths[at], sets.numbers(members, begins, ends))


def _painted(
    size: int, prefixes: _Prefixes, set_count: int
) -> tuple[Ints, Ints, Ints, list[tuple[int, int]]]:
    """Classes of addresses, shorter prefixes first: those of one length are disjoint, and each paints over what is
    around it. A class is what was there before (its parent) and a set of rules.

    The class of every interval; parent and set of every class; the classes (from, to) that each length made.
    """
    owners = np.zeros(size, np.int64)
    parents, own = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    levels, count = [], 1
    for length in np.unique(prefixes.lengths):
        first, beyond, _, sets = (column[prefixes.lengths == length] for column in prefixes)
        pairs, classes = np.unique(owners[first] * set_count + sets, return_inverse=True)
        parents.append(pairs // set_count)
        own.append(pairs % set_count)
        paint = np.zeros(size + 1, np.int64)
        paint[first] += count + classes
        paint[beyond] -= count + classes
        paint = np.cumsum(paint[:-1])
        owners = np.where(paint > 0, paint, owners)
        levels.append((count, count + len(pairs)))
        count += len(pairs)
    return owners, np.concatenate(parents), np.concatenate(own), levels


def bucket_spans(starts: Starts, base: int) -> npt.NDArray[np.void]:
    """For every value of the leading bits the IPv4 intervals that reach into it, as struct span; the first interval is
    element `base`."""
    spans = np.empty(_BUCKETS, SPAN)
    shift = np.uint64(32 - C["POLICY_INDEX_BITS"])
    buckets = (starts >> shift).astype(np.int64)
    last = np.cumsum(np.bincount(buckets, minlength=_BUCKETS)) - 1
    # Where an interval starts with the bucket, the one before does not reach into it.
    is_aligned = np.zeros(_BUCKETS, np.int64)
    is_aligned[buckets[(starts & np.uint64((1 << int(shift)) - 1)) == 0]] = 1
    first = np.append(-1, last[:-1]) + is_aligned
    spans["first"] = first + base
    spans["count"] = last - first + 1
    return spans
