"""The policy compiler: rules that are more than addresses, to bit vectors (docs/adr/0003).

Pure: takes rules as columns, returns numpy arrays in the layout of bpf/layout.h, numbered from 0; the kernel side
adds the offsets of the generation that it writes them to. Owns which bit stands for which rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from firewall.layout import POLICY_RULE, RANK_NONE, C
from firewall.named_sets import NamedSets
from firewall.policy_addresses import Classes, Intervals, Words, address_intervals, nowhere
from firewall.policy_columns import Ints, PolicyRule, RuleColumns, rule_columns
from firewall.policy_fields import Pool, bit_vector, interface_vectors, port_rows, protocol_rows

__all__ = ["HookPolicy", "Policy", "PolicyRule", "compile_columns", "compile_policy", "policy_words"]

_SIDES = range(C["SIDE_COUNT"])
_BITS = 64  # of a word


@dataclass(frozen=True)
class HookPolicy:
    """One hook's image. Vector numbers are those of `Policy.vector`, classes those of `Policy.address_vector`.

        intervals4/6: by side; anywhere4/6: by side, the vector of an address in no prefix; protocol: (768,);
    port: (65536, 2); icmp: (131072,); interfaces: vector by ifindex;
    rules: by bit, `words` * 64 of them, handle 0 where a bit stands for none. Those of the first `enforcing` words
    decide, those of the others observe; `best_rank` is that of the former.
    """

    best_rank: int
    words: int
    uses_interfaces: bool
    any_interface: int
    intervals4: tuple[Intervals, Intervals]
    intervals6: tuple[Intervals, Intervals]
    anywhere4: tuple[int, int]
    anywhere6: tuple[int, int]
    protocol: npt.NDArray[np.uint32]
    port: npt.NDArray[np.uint32]
    icmp: npt.NDArray[np.uint32]
    interfaces: dict[int, int]
    rules: npt.NDArray[np.void]
    enforcing: int

    @property
    def observes(self) -> bool:
        return self.words > self.enforcing

    def intervals(self, version: int) -> tuple[Intervals, Intervals]:
        return self.intervals4 if version == 4 else self.intervals6


@dataclass(frozen=True)
class Policy:
    """Both hooks' images and the vectors that they share, number 0 being zero: pieces, each with the number of its
    first and (count, words in use). The same for classes of addresses. `named`: the sets that the rules name."""

    hooks: tuple[HookPolicy, HookPolicy]
    vector_count: int
    pieces: tuple[tuple[int, Words], ...]
    classes: tuple[tuple[int, Classes], ...]
    named: NamedSets = field(default_factory=NamedSets)

    def vector(self, number: int) -> Words:
        return _row(self.pieces, number)

    def address_vector(self, number: int) -> Words:
        return _row([(first, each.vectors) for first, each in self.classes], number)

    def line_count(self, summary_words: int) -> int:
        """Elements that the classes of addresses need, where vectors have so many words of summary."""
        return 1 + sum(int(each.lines(summary_words).sum()) for _, each in self.classes)

    @cached_property
    def interval_count(self) -> int:
        """Of the family that has more."""
        return max(self.intervals_of(version) for version in (4, 6))

    def intervals_of(self, version: int) -> int:
        return sum(len(each) for hook in self.hooks for each in hook.intervals(version))

    @cached_property
    def block_count(self) -> int:
        """Of the index of IPv4 intervals."""
        return sum(len(each.crowded) for hook in self.hooks for each in hook.intervals4)


def _row(pieces: Iterable[tuple[int, Words]], number: int) -> Words:
    for first, rows in pieces:
        if first <= number < first + len(rows):
            vector: Words = rows[number - first]
            return vector
    return np.zeros(0, np.uint64)


def policy_words(rules: int) -> int:
    """How many words a vector has where there is room for so many rules. One more than they fill, since those that
    observe have words of their own; not where it would need a word of the summary more, which every packet reads."""
    full = -(-rules // _BITS)
    return full if full % _BITS == 0 else full + 1


EMPTY = HookPolicy(
    best_rank=RANK_NONE,
    words=0,
    uses_interfaces=False,
    any_interface=0,
    intervals4=(nowhere(4), nowhere(4)),
    intervals6=(nowhere(6), nowhere(6)),
    anywhere4=(0, 0),
    anywhere6=(0, 0),
    protocol=np.zeros(C["PROTOCOL_ROWS"], np.uint32),
    port=np.zeros((C["PORT_ROWS"], C["SIDE_COUNT"]), np.uint32),
    icmp=np.zeros(C["ICMP_ROWS"], np.uint32),
    interfaces={},
    rules=np.zeros(0, POLICY_RULE),
    enforcing=0,
)


def compile_policy(rules: Iterable[PolicyRule], interfaces: Mapping[str, int]) -> Policy:
    return compile_columns(rule_columns(rules), interfaces)


def compile_columns(
    rules: RuleColumns, interfaces: Mapping[str, int], named: NamedSets | None = None
) -> Policy:
    """`interfaces`: ifindex by name, what globs are matched with."""
    pool = Pool()
    hooks = tuple(_compile_hook(rules, hook, interfaces, pool) for hook in range(C["HOOK_COUNT"]))
    return Policy(
        (hooks[0], hooks[1]), pool.count, tuple(pool.pieces), tuple(pool.classes), named or NamedSets()
    )


def _compile_hook(rules: RuleColumns, hook: int, interfaces: Mapping[str, int], pool: Pool) -> HookPolicy:
    rows = np.flatnonzero(rules.hooks >> hook & 1)
    if not len(rows):
        return EMPTY
    pool.next_hook()
    bits, table, enforcing = _numbered_bits(rules, rows)
    words = len(table) // _BITS
    below_in_use, below = np.unique(rules.below[rows], return_inverse=True)
    protocol, icmp = protocol_rows(
        [rules.belows[at] for at in below_in_use.tolist()], below, bits, words, pool
    )
    by_interface, any_interface = interface_vectors(
        rules.glob_lists, rules.globs[rows], bits, interfaces, words, pool
    )
    by_row = np.full(len(rules), -1, np.int64)
    by_row[rows] = bits
    found = {
        version: [_intervals(rules, version, side, by_row, words, pool) for side in _SIDES]
        for version in (4, 6)
    }
    intervals = {version: [each for each, _ in sides] for version, sides in found.items()}
    anywhere = {version: [number for _, number in sides] for version, sides in found.items()}
    return HookPolicy(
        best_rank=int(rules.ranks[rows[~rules.observes[rows]]].min(initial=RANK_NONE)),
        words=words,
        uses_interfaces=any(rules.glob_lists[at] for at in np.unique(rules.globs[rows]).tolist()),
        any_interface=any_interface,
        intervals4=(intervals[4][0], intervals[4][1]),
        intervals6=(intervals[6][0], intervals[6][1]),
        anywhere4=(anywhere[4][0], anywhere[4][1]),
        anywhere6=(anywhere[6][0], anywhere[6][1]),
        protocol=protocol,
        port=np.stack([_ports(rules, side, by_row, words, pool) for side in _SIDES], axis=1),
        icmp=icmp,
        interfaces=by_interface,
        rules=table,
        enforcing=enforcing,
    )


def _numbered_bits(rules: RuleColumns, rows: Ints) -> tuple[Ints, npt.NDArray[np.void], int]:
    """The bit of each row, what every bit stands for, and how many words hold rules that enforce. Rules that observe
    have the words behind those."""
    observes = rules.observes[rows]
    bits = np.empty(len(rows), np.int64)
    bits[~observes], table = _numbered_kind(rules, rows[~observes])
    enforcing = len(table)
    bits[observes], behind = _numbered_kind(rules, rows[observes])
    bits[observes] += enforcing
    return bits, np.concatenate((table, behind)), enforcing // _BITS


def _numbered_kind(rules: RuleColumns, rows: Ints) -> tuple[Ints, npt.NDArray[np.void]]:
    """The bit of each row, and what every bit stands for. 64 neighbours share a word; in it they stand in winning
    order, and words stand in the order of their first (struct policy_rule)."""
    if not len(rows):
        return np.zeros(0, np.int64), np.zeros(0, POLICY_RULE)
    handles, ranks = rules.handles[rows], rules.ranks[rows]
    order = np.empty(len(rows), np.int64)
    order[np.lexsort((handles, ranks))] = np.arange(len(rows))
    begins = np.arange(0, len(rows), _BITS)
    firsts = np.minimum.reduceat(order, begins)
    place = np.empty(len(firsts), np.int64)
    place[np.argsort(firsts)] = np.arange(len(firsts))
    words = place[np.arange(len(rows)) // _BITS]
    sequence = np.lexsort((order, words))
    counts = np.bincount(words)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    bits = np.empty(len(rows), np.int64)
    bits[sequence] = words[sequence] * _BITS + within
    table = np.zeros(len(firsts) * _BITS, POLICY_RULE)
    table["rank"][bits], table["handle"][bits], table["slot"][bits] = ranks, handles, rules.slots[rows]
    table["order"][bits] = order
    table["enough"][bits] = np.searchsorted(np.sort(firsts), order)
    return bits, table


def _intervals(
    rules: RuleColumns, version: int, side: int, bits: Ints, words: int, pool: Pool
) -> tuple[Intervals, int]:
    """And the vector of an address in no prefix. `bits`: by row, -1 for a rule of the other hook."""
    is_mine = (bits >= 0) & (rules.versions >> (version == 6) & 1).astype(np.bool_)
    anywhere = bit_vector(bits[is_mine & (rules.addresses >> side & 1 == 0)], words)
    ranges = rules.prefixes(version)
    ranges = ranges.only((ranges.sides == side) & is_mine[ranges.rows])
    intervals, classes = address_intervals(ranges, bits[ranges.rows], anywhere)
    return intervals.shifted(pool.append_classes(classes)), int(pool.numbers_of(anywhere[None])[0])


def _ports(rules: RuleColumns, side: int, bits: Ints, words: int, pool: Pool) -> npt.NDArray[np.uint32]:
    is_mine = bits >= 0
    anywhere = bit_vector(bits[is_mine & (rules.ports >> side & 1 == 0)], words)
    ranges = rules.port_ranges
    ranges = ranges.only((ranges.sides == side) & is_mine[ranges.rows])
    return port_rows(ranges, bits[ranges.rows], anywhere, pool)
