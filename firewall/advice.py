"""What the firewall says about rules that may not do what was meant: beside the answer to a change, and about all.

Owns the words, and whose name stands in them. What is true of a rule is firewall.analysis's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import structlog

from firewall.addresses import address_keys
from firewall.analysis import Beaten, Neighbours, matches_nothing, same_packets
from firewall.reads import Reads
from firewall.rule import Rule, format_time
from firewall.ruleset import Ruleset, is_policy
from firewall.ruleset_analysis import Finding, Report, analyse, unmatched
from firewall.store import Record
from firewall.view import AnalysisView, FoundView, RuleView, RuleWarning

T = TypeVar("T")
MOST_CHECKED = 1000  # rules of one batch
MOST_WARNINGS = 100  # of one batch


log = structlog.get_logger()


class Advice(Reads):
    """Every method may be called from any thread."""

    _neighbours: tuple[Ruleset, object, Neighbours] | None = None
    _report: tuple[object, Report] | None = None
    _analysing = threading.Lock()

    # -- about one rule

    def rule(self, rule_id: str) -> RuleView:
        with self._lock:
            record = self._present(rule_id)
            return self._warned(self._view(record), record)

    def _warned(self, view: RuleView, record: Record) -> RuleView:
        """After a change, which stays made whatever happens here."""
        warnings = self._whatever(lambda: self._warnings(record))
        return replace(view, warnings=warnings) if warnings else view

    def _whatever(self, look: Callable[[], tuple[T, ...]]) -> tuple[T, ...]:
        try:
            return look()
        except Exception:
            log.exception("rules could not be looked at")
            return ()

    def _warnings(self, record: Record) -> tuple[RuleWarning, ...]:
        """Of a rule that is in force, under the lock."""
        rule = record.rule
        if not rule.enabled:
            return ()
        if rule.expires_at is not None and rule.expires_at <= self._clock():
            return (RuleWarning("expired", f"it expired at {format_time(rule.expires_at)} and goes at once"),)
        if (is_policy(record) or not address_keys(rule)) and matches_nothing(rule):
            return (_nothing(),)
        found = []
        if rule.interfaces and (names := unmatched(rule.interfaces, self._interface_names())):
            found.append(_no_interface(rule, names))
        neighbours = self._among()
        beaten = neighbours.beaten(rule, record.handle)
        others = self._others(
            [*((beaten.named,) if beaten else ()), *neighbours.twins(rule, record.handle)[:8]]
        )
        if (by_others := _beaten(rule, beaten, others)) is not None:
            found.append(by_others)
        return tuple(found)

    def _warnings_of_many(self, records: Sequence[Record]) -> tuple[tuple[str, RuleWarning], ...]:
        """By id, of the first of many rules, the first of many warnings."""
        return self._whatever(lambda: self._first_warnings(records))

    def _first_warnings(self, records: Sequence[Record]) -> tuple[tuple[str, RuleWarning], ...]:
        found: list[tuple[str, RuleWarning]] = []
        for record in records[:MOST_CHECKED]:
            found += ((record.rule.id, each) for each in self._warnings(record))
            if len(found) >= MOST_WARNINGS:
                break
        return tuple(found[:MOST_WARNINGS])

    def _among(self) -> Neighbours:
        """Made anew when the policy changes; the address tables are looked at as they are."""
        kept, ruleset = self._neighbours, self._ruleset
        if kept is None or kept[0] is not ruleset or kept[1] is not ruleset.policy_rules:
            kept = self._neighbours = (ruleset, ruleset.policy_rules, Neighbours(ruleset))
        return kept[2]

    def _others(self, handles: Iterable[int]) -> dict[int, Rule]:
        wanted = list(dict.fromkeys(handles))
        if not wanted:
            return {}
        return {each.handle: each.rule for each in self._store.by_handles(wanted)}

    def _interface_names(self) -> set[str]:
        return self._interfaces.names()

    # -- about all

    def analysis(self, offset: int, limit: int) -> AnalysisView:
        """Of the rules as they are now, in order of creation. Computed away from the lock, and kept until something
        changes."""
        with self._analysing:
            report = self._reported()
        findings = report.page(offset, limit)
        rules = self._others(handle for each in findings for handle in (each.handle, each.other) if handle)
        names = self._interface_names_now()
        views = [
            FoundView(rules[each.handle].id, _said(each, rules, names))
            for each in findings
            if each.handle in rules
        ]
        return AnalysisView(tuple(views), len(report))

    def _reported(self) -> Report:
        with self._lock:
            ruleset = self._ruleset.frozen()
            names = self._interface_names()
            spared = self._shield.never_drop
            state = (self._store.identity, self._store.revision, frozenset(names), spared)
            if self._report is not None and self._report[0] == state:
                return self._report[1]
            nothing = [
                each.handle
                for each in self._store.with_family()
                if not address_keys(each.rule) and not each.rule.sets
            ]
        report = analyse(ruleset, names, nothing)
        self._report = (state, report)
        return report

    def _interface_names_now(self) -> set[str]:
        return self._seen_now("interface names", self._interface_names, set())


def _beaten(rule: Rule, beaten: Beaten | None, others: dict[int, Rule]) -> RuleWarning | None:
    for other in others.values():
        if other.action == rule.action and same_packets(other, rule):
            return _duplicate(other)
    if beaten is None:
        return None
    if not beaten.named:
        return _spared()
    if beaten.named not in others:
        return None
    return _taken(beaten.code, others[beaten.named], len(beaten.others) - 1)


def _said(finding: Finding, rules: dict[int, Rule], names: Collection[str]) -> RuleWarning:
    rule, other = rules[finding.handle], rules.get(finding.other)
    if finding.code == "no_interface":
        return _no_interface(rule, unmatched(rule.interfaces, names))
    if finding.code == "never_drop":
        return _spared()
    if finding.code == "matches_nothing" or other is None:
        return _nothing()
    if finding.code == "duplicate" or (
        finding.code == "shadowed" and other.action == rule.action and same_packets(other, rule)
    ):
        return _duplicate(other)
    return _taken(finding.code, other)


def _nothing() -> RuleWarning:
    return RuleWarning(
        "matches_nothing", "no packet can match: its addresses and family leave no IP version in common"
    )


def _spared() -> RuleWarning:
    return RuleWarning("never_drop", "it never decides: never_drop of the config spares all that it matches")


def _no_interface(rule: Rule, names: Sequence[str]) -> RuleWarning:
    listed = ", ".join(names)
    only = (
        "so it matches nothing until one comes"
        if len(names) == len(rule.interfaces)
        else "others of its list do"
    )
    return RuleWarning("no_interface", f"no interface is named {listed}; {only}")


def _duplicate(other: Rule) -> RuleWarning:
    return RuleWarning(
        "duplicate",
        f"rule {other.id!r} has the same match and the same action, priority {other.priority}",
        other.id,
    )


def _taken(code: str, other: Rule, more: int = 0) -> RuleWarning:
    together = f" and {more} more together" if more else ""
    named = f"rule {other.id!r}{together} ({other.action}, priority {other.priority})"
    if code == "shadowed":
        return RuleWarning(
            code, f"it never decides: {named} matches every packet that it matches, and wins", other.id
        )
    return RuleWarning(
        code, f"without it nothing changes: {named} decides the same about its packets", other.id
    )
