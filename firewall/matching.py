"""Which rules a packet matches, in the order in which they win: what the filters in the kernel find, in Python.

Owns the meaning of a rule for one packet. Options of the filters (what becomes of fragments and of malformed packets,
what decides where no rule does) are not rules. Costs a look-up for each prefix length that the address lists have, and
a look at each policy rule; never one at each address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol

from firewall.address import BITS, Prefix
from firewall.datapath import Entry, Key, Occupancy
from firewall.layout import C
from firewall.match import PortRange
from firewall.packet import Packet
from firewall.policy_columns import PolicyRule
from firewall.rule import VERSIONS, Rule
from firewall.set_keys import NO_KEYS, SetKeys

Sets = Mapping[str, SetKeys]


class MatchingRule(NamedTuple):
    """`rank` says priority and action (firewall.rule, Rule.rank). `observes`: it decides nothing."""

    rank: int
    handle: int
    is_policy: bool
    observes: bool = False

    @property
    def drops(self) -> bool:
        return not self.rank & C["RANK_ALLOW"]


class Addresses(Protocol):
    """The address tables, as they are or as a plan makes them (firewall.addresses)."""

    @property
    def occupancy(self) -> Occupancy: ...

    def entries(self, key: Key) -> list[Entry]: ...


class Rules(Protocol):
    """Rules in force, or planned (firewall.ruleset)."""

    @property
    def addresses(self) -> Addresses: ...

    @property
    def policy_rules(self) -> dict[int, PolicyRule]: ...

    @property
    def sets(self) -> Sets: ...


def matching_rules(packet: Packet, rules: Rules) -> list[MatchingRule]:
    """All enabled rules that match; the first that does not only observe wins. Where ranks are equal, they stand in the
    order in which the filters choose: those of the address tables by list, length and age, then the policy's by age."""
    found = _address_matches(packet, rules.addresses)
    found += _policy_matches(packet, rules.policy_rules.values(), rules.sets)
    return [each for _, each in sorted(found)]


def winner(packet: Packet, rules: Rules) -> MatchingRule | None:
    return next((each for each in matching_rules(packet, rules) if not each.observes), None)


_Found = tuple[tuple[int, ...], MatchingRule]


def _address_matches(packet: Packet, addresses: Addresses) -> list[_Found]:
    found: list[_Found] = []
    for scope, length, address in _prefixes(packet, addresses.occupancy):
        for entry in addresses.entries(Key(packet.version, scope, length, address)):
            order = (entry.rank, 0, scope, length, entry.handle)
            found.append((order, MatchingRule(entry.rank, entry.handle, False)))
    return found


def _prefixes(packet: Packet, occupancy: Occupancy) -> Iterable[tuple[int, int, int]]:
    """Scope, length and address of each prefix that the lists of the packet's hook may have and that covers it."""
    bits = BITS[packet.version]
    by_scope = occupancy.lengths4 if packet.version == 4 else occupancy.lengths6
    for side, address in ((C["SIDE_SOURCE"], packet.source), (C["SIDE_DESTINATION"], packet.destination)):
        scope = packet.hook << C["SCOPE_HOOK_BIT"] | side
        lengths = by_scope[scope]
        while lengths:
            length = (lengths & -lengths).bit_length() - 1
            lengths &= lengths - 1
            yield scope, length, address >> (bits - length) << (bits - length)


def _policy_matches(packet: Packet, rules: Iterable[PolicyRule], sets: Sets) -> list[_Found]:
    return [
        (
            (each.rule.rank, 1, each.handle),
            MatchingRule(each.rule.rank, each.handle, True, each.rule.observes),
        )
        for each in rules
        if matches(each.rule, packet, sets)
    ]


def matches(rule: Rule, packet: Packet, sets: Sets) -> bool:
    """Whether every field that the rule asks fits; not whether it is enabled. `sets`: what is in those it names."""
    protocols = rule.effective_protocols()
    return (
        packet.hook in rule.hooks
        and (protocols is None or packet.protocol in protocols)
        and packet.version in VERSIONS[rule.family]
        and _covered(rule.sources, rule.source_sets, sets, packet.version, packet.source)
        and _covered(rule.destinations, rule.destination_sets, sets, packet.version, packet.destination)
        and _has_port(rule.source_ports, packet.source_port)
        and _has_port(rule.destination_ports, packet.destination_port)
        and (rule.tcp_flags is None or _has_flags(rule, packet))
        and (not rule.icmp_types or _has_icmp_type(rule, packet))
        and (not rule.interfaces or _is_on(rule.interfaces, packet.interface))
    )


def _covered(
    prefixes: Sequence[Prefix], names: Sequence[str], sets: Sets, version: int, address: int
) -> bool:
    if not prefixes and not names:
        return True
    bits = BITS[version]
    return any(
        each.version == version and (each.address ^ address) >> (bits - each.length) == 0 for each in prefixes
    ) or any(sets.get(name, NO_KEYS).matches(version, address) for name in names)


def _has_port(ranges: Sequence[PortRange], port: int | None) -> bool:
    return not ranges or (port is not None and any(first <= port <= last for first, last in ranges))


def _has_flags(rule: Rule, packet: Packet) -> bool:
    return (
        rule.tcp_flags is not None
        and packet.tcp_flags is not None
        and rule.tcp_flags.matches(packet.tcp_flags)
    )


def _has_icmp_type(rule: Rule, packet: Packet) -> bool:
    return packet.icmp_type is not None and any(
        each.type == packet.icmp_type and each.code in (None, packet.icmp_code) for each in rule.icmp_types
    )


def _is_on(globs: Sequence[str], interface: str | None) -> bool:
    return interface is not None and any(fnmatchcase(interface, glob) for glob in globs)
