"""Rules that can never win, because one rule that wins earlier matches whatever they match.

Owns the exact comparison of two rules. A rule that only several others cover together is not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from firewall.address import BITS, Prefix
from firewall.datapath import Key
from firewall.layout import C
from firewall.match import PortRange
from firewall.matching import Rules
from firewall.rule import VERSIONS, Rule
from firewall.store import Record

_MOST = 1000  # rules of a change that are looked at


def shadowed_by(written: Sequence[Record], rules: Rules) -> list[tuple[int, int]]:
    """Handles of rules of a change with the handle of one that beats each. `rules`: with the change in them."""
    others = sorted(
        (
            (each.rule.rank, each.handle, each.rule)
            for each in rules.policy_rules.values()
            if not each.rule.observes
        ),
        key=lambda each: each[:2],
    )
    found = []
    for record in written[:_MOST]:
        if not record.rule.enabled or record.rule.observes:
            continue
        by = _first_cover(record, others) or _listed_cover(record, rules)
        if by is not None:
            found.append((record.handle, by))
    return found


def _first_cover(record: Record, others: Iterable[tuple[int, int, Rule]]) -> int | None:
    for rank, handle, other in others:
        if (rank, handle) >= (record.rule.rank, record.handle):
            return None
        if covers(other, record.rule):
            return handle
    return None


def _listed_cover(record: Record, rules: Rules) -> int | None:
    """An entry of the address tables that covers every address which the rule asks for on one side."""
    sides = C["SIDE_SOURCE"], C["SIDE_DESTINATION"]
    rule = record.rule
    asked = (rule.sources, rule.source_sets), (rule.destinations, rule.destination_sets)
    for side, (prefixes, sets) in zip(sides, asked, strict=True):
        if sets:  # what is in them changes
            continue
        found = [_entries(record, side, prefix, rules) for prefix in _asked(record.rule, prefixes)]
        common = set.intersection(*found) if found else set()
        if common:
            return min(common)
    return None


def _asked(rule: Rule, prefixes: Sequence[Prefix]) -> list[Prefix]:
    return [each for each in prefixes if each.version in VERSIONS[rule.family]]


def _entries(record: Record, side: int, prefix: Prefix, rules: Rules) -> set[int]:
    """Handles of earlier entries that cover the prefix at every hook of the rule."""
    by_hook = []
    for hook in record.rule.hooks:
        scope, handles = hook << C["SCOPE_HOOK_BIT"] | side, set()
        lengths = (
            rules.addresses.occupancy.lengths4 if prefix.version == 4 else rules.addresses.occupancy.lengths6
        )
        for length in range(prefix.length + 1):
            if not lengths[scope] >> length & 1:
                continue
            bits = BITS[prefix.version]
            masked = prefix.address >> (bits - length) << (bits - length)
            for entry in rules.addresses.entries(Key(prefix.version, scope, length, masked)):
                if (entry.rank, entry.handle) < (record.rule.rank, record.handle):
                    handles.add(entry.handle)
        by_hook.append(handles)
    return set.intersection(*by_hook) if by_hook else set()


def covers(one: Rule, other: Rule) -> bool:
    """Whether `one` matches every packet that `other` matches."""
    protocols, others = one.effective_protocols(), other.effective_protocols()
    return (
        set(one.hooks) >= set(other.hooks)
        and set(VERSIONS[one.family]) >= set(VERSIONS[other.family])
        and (not one.interfaces or (bool(other.interfaces) and set(other.interfaces) <= set(one.interfaces)))
        and (protocols is None or (others is not None and others <= protocols))
        and _cover_addresses((one.sources, one.source_sets), (other.sources, other.source_sets))
        and _cover_addresses(
            (one.destinations, one.destination_sets), (other.destinations, other.destination_sets)
        )
        and _cover_ports(one.source_ports, other.source_ports)
        and _cover_ports(one.destination_ports, other.destination_ports)
        and _cover_flags(one, other)
        and _cover_types(one, other)
    )


def _cover_addresses(
    one: tuple[Sequence[Prefix], Sequence[str]], other: tuple[Sequence[Prefix], Sequence[str]]
) -> bool:
    """Prefixes and sets; a set is in itself alone, for what is in it changes."""
    (wide, wide_sets), (narrow, narrow_sets) = one, other
    if not wide and not wide_sets:
        return True
    return (
        bool(narrow or narrow_sets)
        and set(narrow_sets) <= set(wide_sets)
        and all(any(each.covers(prefix) for each in wide) for prefix in narrow)
    )


def _cover_ports(one: Sequence[PortRange], other: Sequence[PortRange]) -> bool:
    return not one or (
        bool(other)
        and all(
            any(wide.first <= narrow.first and narrow.last <= wide.last for wide in one) for narrow in other
        )
    )


def _cover_flags(one: Rule, other: Rule) -> bool:
    if one.tcp_flags is None:
        return True
    asked = other.tcp_flags
    return (
        asked is not None
        and one.tcp_flags.set & asked.set == one.tcp_flags.set
        and one.tcp_flags.unset & asked.unset == one.tcp_flags.unset
    )


def _cover_types(one: Rule, other: Rule) -> bool:
    return not one.icmp_types or (
        bool(other.icmp_types)
        and all(
            any(wide.type == narrow.type and wide.code in (None, narrow.code) for wide in one.icmp_types)
            for narrow in other.icmp_types
        )
    )
