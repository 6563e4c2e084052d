"""Policy rules as columns of numbers, so that a change of one rule costs no look at the others.

Owns what is computed once a rule: ranges of addresses and ports, and the order in which rules share words. Rows
stand so that rules of the same addresses are neighbours; which bit a rule gets is the compiler's part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.layout import C
from firewall.match import IcmpType, PortRange, TcpFlags
from firewall.rule import VERSIONS, Rule
from firewall.set_keys import NO_KEYS, SetKeys

Ints = npt.NDArray[np.int64]
Sets = Mapping[str, SetKeys]
T = TypeVar("T")
Starts = npt.NDArray[Any]  # uint64 for IPv4; 16 bytes in network order, "S16", for IPv6
START = {4: np.dtype(np.uint64), 6: np.dtype("S16")}
_SIDES = C["SIDE_COUNT"]
_LEAD_OF_SOURCES = 4  # bits: where both sides say as much, rules are looked for by their sources
_SOME_PROTOCOLS, _ANY_PROTOCOL = 254, 255  # numbers that IANA keeps for experiments and itself


class PolicyRule(NamedTuple):
    """A rule that is compiled: its handle for people and events, its slot for counters."""

    rule: Rule
    handle: int
    slot: int


class Below(NamedTuple):
    """What a rule asks below IP, ports left out but for whether it asks any."""

    protocols: frozenset[int] | None
    has_ports: bool
    tcp_flags: TcpFlags | None
    icmp_types: tuple[IcmpType, ...]


@dataclass(frozen=True)
class Ranges:
    """A range of addresses or ports that the rule of a row asks on a side; `ends` is the first place after it. Of
    addresses only prefixes; where one reaches to the last address, `ends` is 0. `lengths`: of prefixes."""

    rows: Ints
    sides: npt.NDArray[np.uint8]
    starts: Starts
    ends: Starts
    lengths: npt.NDArray[np.uint8]

    def only(self, mask: npt.NDArray[np.bool_]) -> Ranges:
        return Ranges(
            self.rows[mask], self.sides[mask], self.starts[mask], self.ends[mask], self.lengths[mask]
        )

    def then(self, *others: Ranges) -> Ranges:
        columns = zip(*(vars(each).values() for each in (self, *others)), strict=True)
        return Ranges(*(np.concatenate(column) for column in columns))


@dataclass(frozen=True)
class RuleColumns:
    """A row a rule. `hooks`, `versions` (bit 0 for IPv4, 1 for IPv6), `addresses` and `ports` (by side: it asks some)
    are sets as bits; `below` and `globs` index the tuples of the same name in the plural."""

    keys: tuple[bytes, ...]
    handles: Ints
    slots: Ints
    ranks: Ints
    hooks: npt.NDArray[np.uint8]
    versions: npt.NDArray[np.uint8]
    addresses: npt.NDArray[np.uint8]
    ports: npt.NDArray[np.uint8]
    observes: npt.NDArray[np.bool_]
    below: Ints
    globs: Ints
    belows: tuple[Below, ...]
    glob_lists: tuple[tuple[str, ...], ...]
    prefixes4: Ranges
    prefixes6: Ranges
    port_ranges: Ranges

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def names_interfaces(self) -> bool:
        return any(self.glob_lists)

    def prefixes(self, version: int) -> Ranges:
        return self.prefixes4 if version == 4 else self.prefixes6

    def changed(self, gone: Collection[int], come: Iterable[PolicyRule], sets: Sets) -> RuleColumns:
        """Without the rules of some handles, with others."""
        stays = ~np.isin(self.handles, np.fromiter(gone, np.int64, len(gone)))
        kept = self if stays.all() else _chosen(self, np.flatnonzero(stays))
        added = rule_columns(come, sets)
        if not len(added):
            return kept
        both = _joined(kept, added)
        return _chosen(both, np.array(sorted(range(len(both)), key=both.keys.__getitem__), np.int64))


def rule_columns(rules: Iterable[PolicyRule], sets: Sets | None = None) -> RuleColumns:
    """`sets`: those that the rules name."""
    keyed = sorted(((_key(each), each) for each in rules), key=lambda pair: pair[0])
    made = [each for _, each in keyed]
    asked = [each.rule for each in made]
    belows, below = _numbered([_below(rule) for rule in asked])
    glob_lists, globs = _numbered([rule.interfaces for rule in asked])
    sides = [(rule.sources, rule.destinations) for rule in asked]
    asks = [(rule.asks_sources, rule.asks_destinations) for rule in asked]
    ports = [(rule.source_ports, rule.destination_ports) for rule in asked]
    return RuleColumns(
        keys=tuple(key for key, _ in keyed),
        handles=np.array([each.handle for each in made], np.int64),
        slots=np.array([each.slot for each in made], np.int64),
        ranks=np.array([rule.rank for rule in asked], np.int64),
        hooks=_bit_sets([rule.hooks for rule in asked]),
        versions=_bit_sets([[version == 6 for version in VERSIONS[rule.family]] for rule in asked]),
        addresses=_bit_sets([[side for side in range(_SIDES) if pair[side]] for pair in asks]),
        ports=_bit_sets([[side for side in range(_SIDES) if pair[side]] for pair in ports]),
        observes=np.array([rule.observes for rule in asked], np.bool_),
        below=below,
        globs=globs,
        belows=belows,
        glob_lists=glob_lists,
        prefixes4=_set_ranges(4, asked, sets or {}, _prefix_ranges(4, sides)),
        prefixes6=_set_ranges(6, asked, sets or {}, _prefix_ranges(6, sides)),
        port_ranges=_port_ranges(ports),
    )


def _key(each: PolicyRule) -> bytes:
    """Neighbours share words, and few words of a packet's vectors should not be 0 (Baboescu and Varghese, SIGCOMM 2001,
    rearrangement). So rules of one protocol stand together, and of these those of the same addresses on the side of
    which they say more: a packet's address has rules there in a word or two, whatever stands on the other side."""
    rule = each.rule
    sides = [(rule.sources, rule.source_sets), (rule.destinations, rule.destination_sets)]
    by_destination = _detail(*sides[1]) > _detail(*sides[0]) + _LEAD_OF_SOURCES
    parts = [bytes((by_destination, _protocol_key(rule.effective_protocols())))]
    for prefixes, sets in reversed(sides) if by_destination else sides:
        if sets:
            parts.append(b"@" + min(sets).encode()[:17].ljust(17, b"\0"))
        else:
            parts.append(_prefix_key(min(prefixes)) if prefixes else bytes(18))
    for ranges in (rule.destination_ports, rule.source_ports):
        first = min(ranges, default=PortRange(0, 0))
        parts.append(first.first.to_bytes(2, "big") + first.last.to_bytes(2, "big"))
    return b"".join((*parts, each.handle.to_bytes(8, "big")))


def _detail(prefixes: Sequence[Prefix], sets: Sequence[str]) -> int:
    """How much a rule says of a side: bits of its first prefix; all where it names sets."""
    if sets:
        return max(BITS.values())
    return min(prefixes).length if prefixes else 0


def _protocol_key(protocols: frozenset[int] | None) -> int:
    if protocols is None:
        return _ANY_PROTOCOL
    return next(iter(protocols)) if len(protocols) == 1 else _SOME_PROTOCOLS


def _prefix_key(prefix: Prefix) -> bytes:
    address = prefix.address << (128 - BITS[prefix.version])
    return bytes((prefix.version,)) + address.to_bytes(16, "big") + bytes((prefix.length,))


def _below(rule: Rule) -> Below:
    has_ports = bool(rule.source_ports or rule.destination_ports)
    return Below(rule.effective_protocols(), has_ports, rule.tcp_flags, rule.icmp_types)


def _numbered(values: Sequence[T]) -> tuple[tuple[T, ...], Ints]:
    """The distinct ones and which of them each is."""
    numbers: dict[T, int] = {}
    column = [numbers.setdefault(value, len(numbers)) for value in values]
    return tuple(numbers), np.array(column, np.int64)


def _bit_sets(sets: Sequence[Iterable[int]]) -> npt.NDArray[np.uint8]:
    return np.array([sum(1 << member for member in members) for members in sets], np.uint8)


def _ranges(rows: Sequence[tuple[int, int]], starts: Starts, ends: Starts, lengths: Sequence[int]) -> Ranges:
    row, side = np.array(rows, np.int64).reshape(-1, 2).T
    return Ranges(row, side.astype(np.uint8), starts, ends, np.array(lengths, np.uint8))


def _prefix_ranges(version: int, sides: Sequence[tuple[Sequence[Prefix], Sequence[Prefix]]]) -> Ranges:
    places, prefixes = [], []
    for row, pair in enumerate(sides):
        for side, asked in enumerate(pair):
            mine = [each for each in asked if each.version == version]
            prefixes += mine
            places += [(row, side)] * len(mine)
    starts = [each.address for each in prefixes]
    ends = [each.address + (1 << (BITS[version] - each.length)) for each in prefixes]
    lengths = [each.length for each in prefixes]
    return _ranges(places, _addresses(version, starts), _addresses(version, ends), lengths)


def _set_ranges(version: int, rules: Sequence[Rule], sets: Sets, others: Ranges) -> Ranges:
    """With those of the sets that rules name."""
    parts = [others]
    for row, rule in enumerate(rules):
        for side, names in enumerate((rule.source_sets, rule.destination_sets)):
            for name in names:
                keys = sets.get(name, NO_KEYS)
                ranges = keys.ranges4 if version == 4 else keys.ranges6
                count = len(ranges.starts)
                rows, on_side = np.full(count, row, np.int64), np.full(count, side, np.uint8)
                parts.append(Ranges(rows, on_side, ranges.starts, ranges.ends, ranges.lengths))
    if len(parts) == 1:
        return others
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Ranges(*(np.concatenate(column) for column in columns))


def _addresses(version: int, numbers: Sequence[int]) -> Starts:
    """One beyond the last address is 0."""
    size = BITS[version] // 8
    past = 1 << BITS[version]
    raw = b"".join((number % past).to_bytes(size, "big") for number in numbers)
    return np.frombuffer(raw, ">u4").astype(np.uint64) if version == 4 else np.frombuffer(raw, "S16")


def _port_ranges(ports: Sequence[tuple[Sequence[PortRange], Sequence[PortRange]]]) -> Ranges:
    """Disjoint ones."""
    places, edges = [], []
    for row, pair in enumerate(ports):
        for side, asked in enumerate(pair):
            mine = _merged(asked)
            edges += mine
            places += [(row, side)] * len(mine)
    starts, ends = np.array(edges, np.int64).reshape(-1, 2).T
    return _ranges(places, starts, ends, [0] * len(places))


def _merged(ranges: Sequence[PortRange]) -> list[tuple[int, int]]:
    """Disjoint half-open ranges."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last + 1))
        else:
            merged.append((first, last + 1))
    return merged


_BY_ROW = ("handles", "slots", "ranks", "hooks", "versions", "addresses", "ports", "observes")
_RANGES = ("prefixes4", "prefixes6", "port_ranges")


def _joined(one: RuleColumns, two: RuleColumns) -> RuleColumns:
    def shifted(ranges: Ranges) -> Ranges:
        return replace(ranges, rows=ranges.rows + len(one))

    belows, below = _united(one.belows, two.belows, one.below, two.below)
    glob_lists, globs = _united(one.glob_lists, two.glob_lists, one.globs, two.globs)
    columns: dict[str, Any] = {
        name: np.concatenate((getattr(one, name), getattr(two, name))) for name in _BY_ROW
    }
    columns |= {name: getattr(one, name).then(shifted(getattr(two, name))) for name in _RANGES}
    return RuleColumns(
        one.keys + two.keys, below=below, globs=globs, belows=belows, glob_lists=glob_lists, **columns
    )


def _united(one: tuple[T, ...], two: tuple[T, ...], ones: Ints, twos: Ints) -> tuple[tuple[T, ...], Ints]:
    values, numbers = _numbered(one + two)
    return values, np.concatenate((numbers[ones], numbers[len(one) + twos]))


def _chosen(columns: RuleColumns, rows: Ints) -> RuleColumns:
    """Some rows, in a new order."""
    place = np.full(len(columns), -1, np.int64)
    place[rows] = np.arange(len(rows))

    def moved(ranges: Ranges) -> Ranges:
        at = place[ranges.rows]
        return replace(ranges, rows=at).only(at >= 0)

    chosen: dict[str, Any] = {name: getattr(columns, name)[rows] for name in _BY_ROW}
    chosen |= {name: moved(getattr(columns, name)) for name in _RANGES}
    belows, below = _in_use(columns.belows, columns.below[rows])
    glob_lists, globs = _in_use(columns.glob_lists, columns.globs[rows])
    keys = tuple(map(columns.keys.__getitem__, rows.tolist()))
    return RuleColumns(keys, below=below, globs=globs, belows=belows, glob_lists=glob_lists, **chosen)


def _in_use(values: tuple[T, ...], column: Ints) -> tuple[tuple[T, ...], Ints]:
    """In order of first use, so that the columns do not depend on what there was before."""
    numbers, first, column = np.unique(column, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return tuple(values[at] for at in numbers[order].tolist()), position[column]
