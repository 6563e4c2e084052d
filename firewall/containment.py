"""Whether one rule matches every packet that another matches.

Owns what each field leaves of all packets, as sets that can be held against each other. Says yes only where it is
certain: where sets of packets are compared field by field, a no may be wrong, a yes never is. Knows no rank and no map.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

from firewall.address import BITS, Prefix
from firewall.match import ICMP_PROTOCOLS, PORT_PROTOCOLS, TCP, IcmpType, PortRange, TcpFlags
from firewall.rule import VERSIONS, Rule

Ranges = tuple[tuple[int, int], ...]  # disjoint, sorted, both ends included
_GLOB_CHARACTERS = "*?["
ALL_PORTS: Ranges = ((0, 65535),)
_CODES = 256


@dataclass(frozen=True, slots=True)
class Match:
    """What a rule matches, field by field; None means any. `sources` and `destinations`: by IP version, of those
    versions that it can match at all. `protocols`: only those that can carry what it asks below IP. `is_partial`: sets
    stand among its addresses, so of these the most that can be is told, and that it covers anything is not sure."""

    hooks: tuple[int, ...]
    versions: tuple[int, ...]
    interfaces: tuple[str, ...]
    sources: dict[int, Ranges] | None
    destinations: dict[int, Ranges] | None
    protocols: frozenset[int] | None
    source_ports: Ranges | None
    destination_ports: Ranges | None
    tcp_flags: TcpFlags | None
    icmp_types: tuple[IcmpType, ...]
    is_partial: bool = False

    @property
    def has_ports(self) -> bool:
        """Whether all its packets have ports: none of them is a later fragment."""
        return bool(self.source_ports or self.destination_ports or self.tcp_flags)

    @property
    def is_empty(self) -> bool:
        """Whether no packet can match."""
        return not self.versions or (self.protocols is not None and not self.protocols)

    @property
    def is_plain(self) -> bool:
        """Whether addresses, direction and family are all that it asks."""
        return self.protocols is None and _is_any_interface(self.interfaces) and not self.is_partial


# Of rules that there are: what a service has ever seen would be without end.
_matches: WeakKeyDictionary[Rule, Match] = WeakKeyDictionary()


def match_of(rule: Rule) -> Match:
    found = _matches.get(rule)
    if found is None:
        found = _matches[rule] = _match_of(rule)
    return found


def _match_of(rule: Rule) -> Match:
    sources = () if rule.source_sets else rule.sources
    destinations = () if rule.destination_sets else rule.destinations
    versions = tuple(
        version
        for version in VERSIONS[rule.family]
        if all(
            not asked or any(each.version == version for each in asked) for asked in (sources, destinations)
        )
    )
    return Match(
        hooks=rule.hooks,
        versions=versions,
        interfaces=rule.interfaces,
        sources=_by_version(sources, versions),
        destinations=_by_version(destinations, versions),
        protocols=_possible_protocols(rule),
        source_ports=_ports(rule.source_ports),
        destination_ports=_ports(rule.destination_ports),
        tcp_flags=rule.tcp_flags,
        icmp_types=rule.icmp_types,
        is_partial=bool(rule.sets),
    )


def _possible_protocols(rule: Rule) -> frozenset[int] | None:
    protocols = rule.effective_protocols()
    if protocols is None:
        return None
    if rule.source_ports or rule.destination_ports:
        protocols &= PORT_PROTOCOLS
    if rule.tcp_flags is not None:
        protocols &= {TCP}
    if rule.icmp_types:
        protocols &= ICMP_PROTOCOLS
    return protocols


def _by_version(prefixes: Sequence[Prefix], versions: Iterable[int]) -> dict[int, Ranges] | None:
    if not prefixes:
        return None
    return {
        version: union(address_range(each) for each in prefixes if each.version == version)
        for version in versions
    }


def address_range(prefix: Prefix) -> tuple[int, int]:
    return prefix.address, prefix.address + (1 << (BITS[prefix.version] - prefix.length)) - 1


def _ports(asked: Sequence[PortRange]) -> Ranges | None:
    return union(asked) if asked else None


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same numbers as disjoint ranges that do not touch."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted((each[0], each[1]) for each in ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def within(inner: Iterable[tuple[int, int]], outer: Ranges) -> bool:
    """`outer` is a union."""
    for first, last in inner:
        at = bisect_right(outer, (first, 1 << 128)) - 1
        if at < 0 or last > outer[at][1]:
            return False
    return True


def overlap(one: Ranges, other: Ranges) -> bool:
    return any(first <= end and begin <= last for first, last in one for begin, end in other)


# -- one match and another


def covers(outer: Match, inner: Match) -> bool:
    """Whether `outer` matches every packet that `inner` matches."""
    places = ((hook, version) for hook in inner.hooks for version in inner.versions)
    return covers_below(outer, inner) and all(covers_addresses(outer, inner, *place) for place in places)


def covers_addresses(outer: Match, inner: Match, hook: int, version: int) -> bool:
    """At one hook, of one IP version."""
    if hook not in outer.hooks or version not in outer.versions or outer.is_partial:
        return False
    everything = (0, (1 << BITS[version]) - 1)
    return all(
        mine is None or within(theirs[version] if theirs is not None else (everything,), mine[version])
        for mine, theirs in ((outer.sources, inner.sources), (outer.destinations, inner.destinations))
    )


def covers_below(outer: Match, inner: Match) -> bool:
    """As to all that is neither hook nor address."""
    return (
        covers_interfaces(outer.interfaces, inner.interfaces)
        and _covers_protocols(outer, inner)
        and _covers_ports(outer, inner)
        and _covers_flags(outer, inner)
        and _covers_icmp(outer, inner)
    )


def _is_any_interface(globs: Sequence[str]) -> bool:
    return not globs or any(glob and not glob.strip("*") for glob in globs)


def covers_interfaces(outer: Sequence[str], inner: Sequence[str]) -> bool:
    if _is_any_interface(outer):
        return True
    return bool(inner) and all(any(_covers_glob(wide, glob) for wide in outer) for glob in inner)


def _covers_glob(wide: str, glob: str) -> bool:
    if wide == glob:
        return True
    begin = _literal(glob)
    if begin == glob:
        return fnmatchcase(glob, wide)
    stem = _literal(wide)
    return wide == stem + "*" and begin.startswith(stem)


def _literal(glob: str) -> str:
    """What stands before the first character that is special."""
    ends = [at for at in map(glob.find, _GLOB_CHARACTERS) if at >= 0]
    return glob[: min(ends, default=len(glob))]


def _covers_protocols(outer: Match, inner: Match) -> bool:
    if outer.protocols is None:
        return True
    return inner.protocols is not None and inner.protocols <= outer.protocols


def _covers_ports(outer: Match, inner: Match) -> bool:
    """A rule on ports does not match a later fragment; one without ports does."""
    for mine, theirs in (
        (outer.source_ports, inner.source_ports),
        (outer.destination_ports, inner.destination_ports),
    ):
        if mine is not None and not (inner.has_ports and within(theirs or ALL_PORTS, mine)):
            return False
    return True


def _covers_flags(outer: Match, inner: Match) -> bool:
    asked, theirs = outer.tcp_flags, inner.tcp_flags or TcpFlags(0, 0)
    if asked is None:
        return True
    only_tcp = inner.has_ports and inner.protocols == frozenset((TCP,))
    return only_tcp and not asked.set & ~theirs.set and not asked.unset & ~theirs.unset


def _covers_icmp(outer: Match, inner: Match) -> bool:
    if not outer.icmp_types:
        return True
    asked = _codes(outer.icmp_types)
    return bool(inner.icmp_types) and all(
        within(codes, asked.get(number, ())) for number, codes in _codes(inner.icmp_types).items()
    )


def _codes(types: Iterable[IcmpType]) -> dict[int, Ranges]:
    by_type: dict[int, list[tuple[int, int]]] = {}
    for each in types:
        last = _CODES - 1 if each.code is None else each.code
        by_type.setdefault(each.type, []).append((each.code or 0, last))
    return {number: union(codes) for number, codes in by_type.items()}


def may_meet(one: Match, other: Match) -> bool:
    """Whether a packet might match both; where it says no, none does."""
    versions = [each for each in one.versions if each in other.versions]
    return (
        any(hook in other.hooks for hook in one.hooks)
        and any(_addresses_meet(one, other, version) for version in versions)
        and (
            one.protocols is None or other.protocols is None or not one.protocols.isdisjoint(other.protocols)
        )
        and _ranges_meet(one.source_ports, other.source_ports)
        and _ranges_meet(one.destination_ports, other.destination_ports)
        and _flags_meet(one.tcp_flags, other.tcp_flags)
    )


def _addresses_meet(one: Match, other: Match, version: int) -> bool:
    return all(
        mine is None or theirs is None or overlap(mine[version], theirs[version])
        for mine, theirs in ((one.sources, other.sources), (one.destinations, other.destinations))
    )


def _ranges_meet(one: Ranges | None, other: Ranges | None) -> bool:
    return one is None or other is None or overlap(one, other)


def _flags_meet(one: TcpFlags | None, other: TcpFlags | None) -> bool:
    return one is None or other is None or not (one.set & other.unset or one.unset & other.set)
