"""Prefixes to intervals: what the policy asks of an address, by sorted starts (bpf/layout.h, struct interval4).

Owns nested prefixes and which rules hold together for which addresses. Knows rules as bits only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.layout import C
from firewall.policy_columns import START, Ints, Ranges, Starts

Words = npt.NDArray[np.uint64]
_BUCKETS = 1 << C["POLICY_INDEX_BITS"]
_BLOCK = 1 << C["POLICY_BLOCK_BITS"]
_AT_ONCE = 1024  # crowded buckets whose blocks are worked out together: all at once took half a gigabyte
_BLOCK_SHIFT = np.uint64(32 - C["POLICY_INDEX_BITS"] - C["POLICY_BLOCK_BITS"])


@dataclass(frozen=True)
class Intervals:
    """From each start to the next one, addresses of one class. The first start is 0."""

    starts: Starts
    classes: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def reach(self) -> tuple[Ints, Ints]:
        """Of IPv4, the first and the last interval of every value of the leading bits."""
        return _reaching_into(self.starts)

    @cached_property
    def crowded(self) -> Ints:
        """The values of the leading bits that get a block. Where intervals are many blocks are worth less: of a large
        one a packet reads a word that no other packet had read, and the search it spares stays in few cache lines."""
        if len(self) == 1:
            return np.zeros(0, np.int64)
        first, last = self.reach
        crowd = C["POLICY_CROWD"] if len(self) <= C["POLICY_LONG"] else C["POLICY_LONG_CROWD"]
        return np.flatnonzero(last - first + 1 > crowd)

    def shifted(self, by: int) -> Intervals:
        """The same with other numbers of classes."""
        return Intervals(self.starts, self.classes + np.uint32(by))


@dataclass(frozen=True)
class Classes:
    """Classes of addresses: the vector of each, a row; that of an address in no prefix is the first."""

    vectors: Words

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def is_own(self) -> npt.NDArray[np.bool_]:
        """Which words differ from the first row's, by class and word."""
        return np.asarray(self.vectors != self.vectors[0])

    def lines(self, summary_words: int) -> Ints:
        """How many lines each class takes (bpf/layout.h, struct line)."""
        words: Ints = self.is_own.sum(axis=1) + 2 * summary_words
        return -(-words // C["LINE_WORDS"])


class Reaches(NamedTuple):
    """Of parts of all addresses: the first interval that reaches into each, and how many do; where that is 0, the
    first of the blocks that say it of smaller parts."""

    firsts: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint32]

    def part(self, first: int, end: int) -> Reaches:
        return Reaches(self.firsts[first:end], self.counts[first:end])


def no_reaches(size: int = 0) -> Reaches:
    return Reaches(np.zeros(size, np.uint32), np.zeros(size, np.uint32))


class _Prefixes(NamedTuple):
    """Distinct prefixes: the places of their first start and of the first beyond, their length, their set of rules."""

    first: Ints
    beyond: Ints
    lengths: npt.NDArray[np.uint8]
    sets: Ints


class _Sets(NamedTuple):
    """Distinct sets of bits: where each one's begin and end in `members`. Number 0 is the empty one."""

    begins: Ints
    ends: Ints
    members: Ints

    def pairs(self, sets: Ints) -> tuple[Ints, Ints]:
        """Row and bit of all members, a row for each of `sets`."""
        begins, counts = self.begins[sets], self.ends[sets] - self.begins[sets]
        rows = np.repeat(np.arange(len(sets)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.members[np.repeat(begins, counts) + within]


def nowhere(version: int) -> Intervals:
    """All addresses are of class 0."""
    return Intervals(np.zeros(1, START[version]), np.zeros(1, np.uint32))


def address_intervals(ranges: Ranges, bits: Ints, anywhere: Words) -> tuple[Intervals, Classes]:
    """Intervals, and the classes that they name. `bits`: of each range's rule; `anywhere`: the vector of an address in
    no prefix, which is class 0 of those."""
    zero = np.zeros(1, ranges.starts.dtype)
    if not len(bits):
        return Intervals(zero, np.zeros(1, np.uint32)), Classes(anywhere[None])
    starts, places = np.unique(np.concatenate((zero, ranges.starts, ranges.ends)), return_inverse=True)
    first, beyond = places[1 : len(bits) + 1], places[len(bits) + 1 :]
    beyond = np.where(beyond == 0, len(starts), beyond)  # 0: up to the last address
    prefixes, sets = _distinct(first, beyond, ranges.lengths, bits)
    owners, parents, own, levels = _painted(len(starts), prefixes, len(sets.begins))
    vectors = np.zeros((len(parents), len(anywhere)), np.uint64)
    set_bits(vectors, *sets.pairs(own))
    vectors[0] = anywhere
    for made, upto in levels:
        vectors[made:upto] |= vectors[parents[made:upto]]
    is_first = np.append(True, owners[1:] != owners[:-1])
    return Intervals(starts[is_first], owners[is_first].astype(np.uint32)), Classes(vectors)


def set_bits(rows: Words, row: Ints, bit: Ints) -> None:
    values = np.left_shift(np.uint64(1), (bit & 63).astype(np.uint64))
    # By one index: numpy has a fast way for that alone.
    np.bitwise_or.at(rows.reshape(-1), row * rows.shape[1] + (bit >> 6), values)


def _distinct(
    first: Ints, beyond: Ints, lengths: npt.NDArray[np.uint8], bits: Ints
) -> tuple[_Prefixes, _Sets]:
    """A prefix that several rules name stands once, with all of their bits."""
    places = first * (int(beyond.max()) + 1) + beyond
    order = np.lexsort((bits, places))
    places, members = places[order], bits[order]
    is_new = np.append(True, (places[1:] != places[:-1]) | (members[1:] != members[:-1]))
    order, places, members = order[is_new], places[is_new], members[is_new]
    begins = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
    sets, numbers = _distinct_sets(members, begins, np.append(begins[1:], len(places)))
    at = order[begins]
    return _Prefixes(first[at], beyond[at], lengths[at], numbers), sets


def _distinct_sets(members: Ints, begins: Ints, ends: Ints) -> tuple[_Sets, Ints]:
    """Of sets that stand one after the other in `members`, sorted each: the distinct ones, and which each one is. Sets
    are told apart by the sum of a random number for each member, which is looked at: where two that differ had the
    same sum, other numbers are taken."""
    counts, size = ends - begins, 1 << int(members.max()).bit_length()
    for attempt in count():
        sums = np.add.reduceat(_random_numbers(size, attempt)[members], begins)
        _, first, numbers = np.unique(sums, return_index=True, return_inverse=True)
        alike = first[numbers]
        theirs = np.arange(len(members)) + np.repeat(begins[alike] - begins, counts)
        if np.array_equal(counts[alike], counts) and np.array_equal(members[theirs], members):
            break
    return _Sets(np.append(0, begins[first]), np.append(0, ends[first]), members), numbers + 1


@lru_cache(maxsize=2)
def _random_numbers(size: int, attempt: int) -> Words:
    return np.random.default_rng(attempt).integers(1 << 64, size=size, dtype=np.uint64)


def _painted(
    size: int, prefixes: _Prefixes, set_count: int
) -> tuple[Ints, Ints, Ints, list[tuple[int, int]]]:
    """Classes of addresses, shorter prefixes first: those of one length are disjoint, and each paints over what is
    around it. A class is what was there before (its parent) and a set of rules.

    The class of every interval; parent and set of every class; the classes (from, to) that each length made.
    """
    owners = np.zeros(size, np.int64)
    parents, own = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    levels, made = [], 1
    order = np.argsort(prefixes.lengths, kind="stable")
    every_first, every_beyond, lengths, every_set = (column[order] for column in prefixes)
    begins = np.flatnonzero(np.append(True, lengths[1:] != lengths[:-1])).tolist()
    for begin, end in pairwise((*begins, len(lengths))):
        first, beyond, sets = every_first[begin:end], every_beyond[begin:end], every_set[begin:end]
        pairs, classes = np.unique(owners[first] * set_count + sets, return_inverse=True)
        parents.append(pairs // set_count)
        own.append(pairs % set_count)
        paint = np.zeros(size + 1, np.int64)
        paint[first] += made + classes
        paint[beyond] -= made + classes
        paint = np.cumsum(paint[:-1])
        owners = np.where(paint > 0, paint, owners)
        levels.append((made, made + len(pairs)))
        made += len(pairs)
    return owners, np.concatenate(parents), np.concatenate(own), levels


def index_reaches(intervals: Intervals, base: int, blocks_at: int) -> tuple[Reaches, Reaches]:
    """Which IPv4 intervals reach into each bucket of addresses: by the leading bits, and the blocks of
    crowded buckets. The first interval is element `base`, the first block element `blocks_at`."""
    starts = intervals.starts
    if len(starts) == 1:
        return Reaches(np.full(_BUCKETS, base, np.uint32), np.ones(_BUCKETS, np.uint32)), no_reaches()
    first, last = intervals.reach
    firsts, counts = (first + base).astype(np.uint32), (last - first + 1).astype(np.uint32)
    crowded = intervals.crowded
    firsts[crowded] = blocks_at + np.arange(len(crowded)) * _BLOCK
    counts[crowded] = 0
    blocks = no_reaches(len(crowded) * _BLOCK)
    for at in range(0, len(crowded), _AT_ONCE):
        some = crowded[at : at + _AT_ONCE]
        begins = (some[:, None] * _BLOCK + np.arange(_BLOCK)).reshape(-1).astype(np.uint64) << _BLOCK_SHIFT
        first = np.searchsorted(starts, begins, "right") - 1
        last = np.searchsorted(starts, begins + (np.uint64(1) << _BLOCK_SHIFT), "left") - 1
        mine = slice(at * _BLOCK, (at + len(some)) * _BLOCK)
        blocks.firsts[mine], blocks.counts[mine] = first + base, last - first + 1
    return Reaches(firsts, counts), blocks


def _reaching_into(starts: Starts) -> tuple[Ints, Ints]:
    """The first and the last interval of every value of the leading bits, by counting."""
    shift = np.uint64(32 - C["POLICY_INDEX_BITS"])
    buckets = (starts >> shift).astype(np.int64)
    last = np.cumsum(np.bincount(buckets, minlength=_BUCKETS)) - 1
    # Where an interval starts with the bucket, the one before does not reach into it.
    is_aligned = np.zeros(_BUCKETS, np.int64)
    is_aligned[buckets[starts == starts >> shift << shift]] = 1
    return np.append(-1, last[:-1]) + is_aligned, last
