"""Whether a rule decides anything beside the others: which of them take all its packets before it.

Owns the order of winning as far as it is certain, and the search among the rules that are compiled. A rule is accused
only where each packet that it matches is matched by another that stands before it. Knows no store: rules of the address
tables are named by their handles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.addresses import AddressTables, address_keys
from firewall.containment import (
    Match,
    covers,
    covers_addresses,
    covers_below,
    match_of,
    may_meet,
)
from firewall.datapath import Key
from firewall.layout import C
from firewall.policy import PolicyRule
from firewall.policy_columns import Ints, RuleColumns
from firewall.rule import Rule
from firewall.ruleset import Ruleset

_SIDES = (C["SIDE_SOURCE"], C["SIDE_DESTINATION"])
_MOST_CANDIDATES = 2000  # looked at one by one; what lies beyond is not accused


class Other(NamedTuple):
    """A rule that takes all packets of a place before or together with another. Sorted, the first wins."""

    rank: int
    handle: int
    is_policy: bool


class Beaten(NamedTuple):
    """`others`: handles, each takes a part of the rule's packets. `code`: shadowed, where it can never win; redundant,
    where another of the same rank takes the same packets, so that which of the two counts has no effect. Handle 0 is
    never_drop."""

    code: str
    others: tuple[int, ...]

    @property
    def named(self) -> int:
        """The first that is a rule, 0 where none is."""
        return next((each for each in self.others if each), 0)


def decides(rule: Rule) -> bool:
    """Whether a rule ends the search for one: those that do not hide nothing behind them."""
    return rule.enabled and getattr(rule, "mode", "enforce") != "observe"


def matches_nothing(rule: Rule) -> bool:
    """Whether no packet can satisfy all its fields."""
    return match_of(rule).is_empty


def same_packets(one: Rule, other: Rule) -> bool:
    """Whether two rules certainly match the same."""
    mine, theirs = match_of(one), match_of(other)
    return covers(mine, theirs) and covers(theirs, mine)


class Neighbours:
    """The compiled rules, to hold others against. Of one moment: not to be kept over a change."""

    def __init__(self, ruleset: Ruleset) -> None:
        self._addresses = ruleset.addresses
        self._policy = ruleset.policy_rules
        self._columns = ruleset.columns
        self._ranks: Ints | None = None
        self.plain = [
            each
            for each in ruleset.wide_policy_rules()
            if decides(each.rule) and match_of(each.rule).is_plain
        ]

    def policy_rule(self, handle: int) -> PolicyRule | None:
        return self._policy.get(handle)

    def beaten(self, rule: Rule, handle: int) -> Beaten | None:
        """None where the rule may decide something, or matches nothing."""
        if not rule.enabled or (rule.sets and rule.is_addresses_only):
            return None
        own = Other(rule.rank, handle, not rule.is_addresses_only)
        places = self._of_policy_rule(own, rule) if own.is_policy else self._of_address_rule(own, rule)
        return verdict_of(own, places)

    def repeated(self, rule: Rule, handle: int) -> PolicyRule | None:
        """The first policy rule of the same action behind a policy rule that takes all its packets, if nothing that is
        between them can decide otherwise: without the rule everything were as it is."""
        match = match_of(rule)
        if match.is_empty or not rule.enabled:
            return None
        behind = [
            each
            for each in self._candidates(match, match.hooks[0], match.versions[0], after_rank=rule.rank)
            if each.rule.action == rule.action and covers(match_of(each.rule), match)
        ]
        first = min(behind, key=lambda each: (each.rule.rank, each.handle), default=None)
        if first is None or self._decides_otherwise(rule, first.rule.rank):
            return None
        return first

    def _decides_otherwise(self, rule: Rule, until_rank: int) -> bool:
        """Whether a rule of the other action between two ranks may match a packet of a rule."""
        if has_between(self.opposite_ranks(rule.action), rule.rank, until_rank):
            return True
        columns, match = self._columns, match_of(rule)
        between = (columns.ranks > rule.rank) & (columns.ranks < until_rank)
        between &= (columns.ranks ^ rule.rank) & C["RANK_ALLOW"] != 0
        handles = columns.handles[between].tolist()
        if len(handles) > _MOST_CANDIDATES:
            return True
        return any(may_meet(match, match_of(self._policy[each].rule)) for each in handles)

    def opposite_ranks(self, action: str) -> Ints:
        """Of the address tables, sorted: ranks of rules of the other action."""
        if self._ranks is None:
            self._ranks = address_ranks(self._addresses)
        is_drop = action == "drop"
        opposite: Ints = self._ranks[(self._ranks & C["RANK_ALLOW"] != 0) == is_drop]
        return opposite

    def twins(self, rule: Rule, handle: int) -> list[int]:
        """Handles of rules of the same action that may ask the same."""
        if not rule.enabled:
            return []
        if rule.sets:
            return []
        if rule.is_addresses_only:
            keys = address_keys(rule)
            entries = self._addresses.entries(keys[0]) if keys else []
            return [
                each.handle
                for each in entries
                if each.handle != handle and not (each.rank ^ rule.rank) & C["RANK_ALLOW"]
            ]
        match = match_of(rule)
        return (
            [
                each.handle
                for each in self._candidates(match, match.hooks[0], match.versions[0])
                if each.handle != handle and each.rule.action == rule.action and same_packets(each.rule, rule)
            ]
            if not match.is_empty
            else []
        )

    # -- rules of the address tables

    def _of_address_rule(self, own: Other, rule: Rule) -> Iterator[Other | None]:
        """For each place of the rule the first that takes all of it."""
        for key in address_keys(rule):
            others = [*self._entries_around(key, own), *self._plain_around(key, own)]
            yield min(others, default=None)

    def _entries_around(self, key: Key, own: Other) -> Iterator[Other]:
        for place, entry in self._addresses.around(key):
            winner = entry
            if entry.handle == own.handle:
                others = self._addresses.entries(place)[1:2]
                if not others:
                    continue
                winner = others[0]
            if winner.rank <= own.rank:
                yield Other(winner.rank, winner.handle, False)

    def _plain_around(self, key: Key, own: Other) -> Iterator[Other]:
        """Policy rules that ask for addresses alone."""
        if not self.plain:
            return
        hook, side = key.scope >> C["SCOPE_HOOK_BIT"], key.scope & C["SIDE_DESTINATION"]
        prefix = Prefix(key.version, key.address, key.length)
        for each in self.plain:
            if each.rule.rank <= own.rank and has_all_of(match_of(each.rule), hook, side, prefix):
                yield Other(each.rule.rank, each.handle, True)

    # -- policy rules

    def _of_policy_rule(self, own: Other, rule: Rule) -> Iterator[Other | None]:
        match = match_of(rule)
        for hook in match.hooks:
            for version in match.versions:
                others = [
                    Other(each.rule.rank, each.handle, True)
                    for each in self._candidates(match, hook, version, own.rank)
                    if each.handle != own.handle
                    and covers_addresses(match_of(each.rule), match, hook, version)
                    and covers_below(match_of(each.rule), match)
                ]
                best = min(others, default=None)
                yield from [best] if best is not None else self._by_addresses(rule, own, hook, version)

    def _by_addresses(self, rule: Rule, own: Other, hook: int, version: int) -> Iterator[Other | None]:
        """Rules of the address tables that together have all sources, or all destinations."""
        sources = () if rule.source_sets else rule.sources
        destinations = () if rule.destination_sets else rule.destinations
        for side, asked in zip(_SIDES, (sources, destinations), strict=True):
            prefixes = [each for each in asked if each.version == version] or [Prefix(version, 0, 0)]
            scope = hook << C["SCOPE_HOOK_BIT"] | side
            found = []
            for each in prefixes:
                key = Key(version, scope, each.length, each.address)
                best = min(self._entries_around(key, own), default=None)
                if best is None:
                    break
                found.append(best)
            if len(found) == len(prefixes):
                yield from found
                return
        yield None

    def _candidates(
        self,
        match: Match,
        hook: int,
        version: int,
        most_rank: int | None = None,
        after_rank: int | None = None,
    ) -> Iterator[PolicyRule]:
        """Policy rules that match one certain packet of a place, as far as hook, addresses and ports go: all that
        cover the place are among them."""
        columns = self._columns
        fits = matching(columns, match, hook, version)
        if most_rank is not None:
            fits &= columns.ranks <= most_rank
        if after_rank is not None:
            fits &= columns.ranks > after_rank
        for handle in columns.handles[fits][:_MOST_CANDIDATES].tolist():
            each = self._policy[handle]
            if decides(each.rule):
                yield each


def verdict_of(own: Other, places: Iterator[Other | None]) -> Beaten | None:
    """`places`: for each part of a rule's packets, the first of those that take all of it."""
    others: dict[int, None] = {}
    verdict = "shadowed"
    for other in places:
        if other is None:
            return None
        others[other.handle] = None
        if not _wins(other, own):
            verdict = "redundant"
    return Beaten(verdict, tuple(others)) if others else None


def _wins(other: Other, own: Other) -> bool:
    """At equal rank the older wins; but rules of the address tables are asked before the policy."""
    if other.rank != own.rank:
        return other.rank < own.rank
    return other.handle < own.handle and (own.is_policy or not other.is_policy)


def has_all_of(match: Match, hook: int, side: int, prefix: Prefix) -> bool:
    """Whether a rule that asks for addresses alone matches all packets with an address in a prefix."""
    asked = (prefix,)
    inner = Rule("asked", sources=asked) if side == C["SIDE_SOURCE"] else Rule("asked", destinations=asked)
    return covers_addresses(match, match_of(inner), hook, prefix.version)


def matching(columns: RuleColumns, match: Match, hook: int, version: int) -> npt.NDArray[np.bool_]:
    """Rows whose hook, IP version, addresses and ports let one packet of a place through: that of the smallest."""
    fits = (columns.hooks >> hook & 1).astype(np.bool_)
    fits &= (columns.versions >> (version == 6) & 1).astype(np.bool_)
    for side, asked in enumerate((match.sources, match.destinations)):
        first = 0 if asked is None else asked[version][0][0]
        fits &= (columns.addresses >> side & 1 == 0) | _reached(columns, version, side, first)
    for side, ports in enumerate((match.source_ports, match.destination_ports)):
        ranges = columns.port_ranges
        first = ports[0][0] if ports else 0
        reached = np.zeros(len(columns), np.bool_)
        reached[ranges.rows[(ranges.sides == side) & (ranges.starts <= first) & (ranges.ends > first)]] = True
        fits &= (columns.ports >> side & 1 == 0) | reached
    return fits


def _reached(columns: RuleColumns, version: int, side: int, address: int) -> npt.NDArray[np.bool_]:
    ranges = columns.prefixes(version)
    if version == 4:
        at = np.uint64(address)
        has = (ranges.starts <= at) & ((ranges.ends > at) | (ranges.ends == 0))
    else:
        raw = address.to_bytes(BITS[6] // 8, "big")
        has = (ranges.starts <= raw) & ((ranges.ends > raw) | (ranges.ends == b""))
    reached = np.zeros(len(columns), np.bool_)
    reached[ranges.rows[has & (ranges.sides == side)]] = True
    return reached


def address_ranks(tables: AddressTables) -> Ints:
    """The ranks that the rules of the address tables have, sorted."""
    losing = {entry.rank for entries in tables.losers().values() for entry in entries}
    losing |= tables.layers.ranks
    parts = [tables.winners(version).ranks.astype(np.int64) for version in BITS]
    parts += [tables.hidden(version).ranks.astype(np.int64) for version in BITS]
    return np.unique(np.concatenate([*parts, np.array(sorted(losing), np.int64)]))


def has_between(ranks: Ints, after: int, before: int) -> bool:
    """Whether some of the sorted ranks lie between two, ends left out."""
    return bool(np.searchsorted(ranks, before, "left") > np.searchsorted(ranks, after, "right"))
