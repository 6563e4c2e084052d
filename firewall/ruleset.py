"""The rule set as it should be in the kernel: which structure holds each rule, and what a change edits.

Owns the split into address tables and policy, and the slots of policy rules' counters. Pure planning:
nothing here reads or writes the kernel or the store.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from firewall.address import BITS, Prefix
from firewall.addresses import AddressPlan, AddressTables, PlannedAddresses
from firewall.datapath import Change, Entries
from firewall.errors import table_full
from firewall.layout import C
from firewall.named_sets import NO_COUNTERS, Counters, CountingSet, before_start
from firewall.policy import Policy, PolicyRule, compile_columns, policy_words
from firewall.policy_columns import RuleColumns, rule_columns
from firewall.policy_splice import spliced, with_sets
from firewall.set_keys import SetDelta, SetKeys, windows_of
from firewall.store import Record

Sets = Mapping[str, SetKeys]


@dataclass(frozen=True)
class RulesetPlan:
    """`policy_rules` and `policy` None: the policy stays as it is. `sets`: by name, after it. `fresh_entries`: counters
    of entries of sets that start at 0. `deltas`: of the sets that change."""

    addresses: AddressPlan
    change: Change
    policy_rules: dict[int, PolicyRule] | None
    columns: RuleColumns | None
    policy: Policy | None
    fresh_slots: tuple[int, ...]
    fresh_entries: Counters
    freed_slots: tuple[int, ...]
    sets: Sets
    deltas: Mapping[str, SetDelta] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """Rules of firewall/matching.py."""

    addresses: PlannedAddresses
    policy_rules: dict[int, PolicyRule]
    sets: Sets


def is_policy(record: Record) -> bool:
    return not record.rule.is_addresses_only


class Ruleset:
    """Enabled rules, compiled. `slots`: counters for policy rules there are, two for each rule that has room, so
    that one change can put others in the place of all. `sets`: what is in each, by name."""

    def __init__(
        self, slots: int, used_slots: Mapping[int, int], counting: Mapping[int, CountingSet] | None = None
    ) -> None:
        """`used_slots`: by handle, those that already count. `counting`: the same of sets, by hashed name."""
        self.addresses = AddressTables()
        self.policy_rules: dict[int, PolicyRule] = {}
        self.sets: Sets = {}
        self._columns = rule_columns(())
        self._counting = dict(counting or {})
        self.policy = compile_columns(self._columns, {}, before_start(self._counting))
        self._known_slots = dict(used_slots)
        self._slots = slots
        self.fresh_entries = NO_COUNTERS  # of the last load
        self.held_rules = 0  # policy rules that went and may come back: their room is kept
        taken = set(used_slots.values())
        self._free_slots = deque(slot for slot in range(slots) if slot not in taken)

    def frozen(self) -> Ruleset:
        """As it is now, to be looked at while others change the rules. Nothing may be planned with it."""
        frozen = copy.copy(self)
        frozen.addresses = self.addresses.frozen()
        return frozen

    def after(self, plan: RulesetPlan) -> Ruleset:
        """As a plan makes it, to be looked at. Nothing may be planned with it."""
        made = self.frozen()
        made.addresses.commit(plan.addresses)
        made.sets = plan.sets
        if plan.policy_rules is not None and plan.columns is not None and plan.policy is not None:
            made.policy_rules, made._columns, made.policy = plan.policy_rules, plan.columns, plan.policy
        return made

    @property
    def columns(self) -> RuleColumns:
        """The policy rules, a row each."""
        return self._columns

    def wide_policy_rules(self) -> list[PolicyRule]:
        """Those that leave sources or destinations open, or ask for all of them."""
        columns = self._columns
        asks = columns.addresses
        both = asks == (1 << C["SIDE_COUNT"]) - 1
        for version in BITS:
            ranges = columns.prefixes(version)
            both[ranges.rows[ranges.lengths <= 1]] = False
        plain = np.array([each.protocols is None for each in columns.belows], np.bool_)
        wide = ~both & plain[columns.below] if len(columns) else both
        return [self.policy_rules[handle] for handle in columns.handles[wide].tolist()]

    def plan(
        self,
        removed: Sequence[Record],
        added: Sequence[Record],
        interfaces: Mapping[str, int],
        arriving: Sequence[Entries] = (),
        leaving: Sequence[Entries] = (),
        deltas: Mapping[str, SetDelta] | None = None,
        at_once: bool = True,
    ) -> RulesetPlan:
        """A record that is in both changed. `interfaces`: ifindex by name of what is protected. `arriving` and
        `leaving`: address rules by the million. `deltas`: by name, of sets that change. `at_once`: as in Change, where
        the policy stays as it is.

        Raises TableFull where there are more policy rules than a vector has bits for.
        """
        deltas = deltas or {}
        sets = {**self.sets, **{name: each.after for name, each in deltas.items()}} if deltas else self.sets
        removed = [each for each in removed if each.rule.enabled]
        added = [each for each in added if each.rule.enabled]
        addresses = self.addresses.plan(
            ((each.rule, each.handle) for each in removed if not is_policy(each)),
            ((each.rule, each.handle) for each in added if not is_policy(each)),
            arriving,
            leaving,
            sets,
            deltas,
        )
        gone = {each.handle for each in removed if is_policy(each)}
        come = [each for each in added if is_policy(each)]
        again = self._naming(deltas) if deltas else set()
        if not gone and not come and not again:
            plan = self._without_policy(addresses, sets, at_once)
        else:
            plan = self._plan_policy(addresses, gone, come, interfaces, sets, again, deltas)
        return replace(plan, deltas=deltas) if deltas else plan

    def _without_policy(
        self, addresses: AddressPlan, sets: Sets | None = None, at_once: bool = True
    ) -> RulesetPlan:
        change = self.addresses.change(addresses, None, None, at_once=at_once)
        return RulesetPlan(
            addresses, change, None, None, None, (), NO_COUNTERS, (), self.sets if sets is None else sets
        )

    def _plan_policy(
        self,
        addresses: AddressPlan,
        gone: set[int],
        come: Sequence[Record],
        interfaces: Mapping[str, int],
        sets: Sets,
        again: Collection[int] = (),
        deltas: Mapping[str, SetDelta] | None = None,
    ) -> RulesetPlan:
        """`again`: handles of rules that stay, and whose addresses are others; `deltas`: what changed of these."""
        rules = dict(self.policy_rules)
        for handle in gone:
            rules.pop(handle, None)
        wanted = len(rules) + len({record.handle for record in come} - rules.keys())
        room = self._slots // 2
        if wanted > len(self.policy_rules):
            room -= self.held_rules
        if wanted > room:
            raise table_full("policy_rules", room, wanted, "bpf.max_rules", "rules")
        fresh = []
        free = iter(self._free_slots)
        for record in come:
            before = self.policy_rules.get(record.handle)
            if before is not None:
                slot = before.slot
            elif record.handle in self._known_slots:
                slot = self._known_slots[record.handle]
            else:
                slot = next(free)
                fresh.append(slot)
            rules[record.handle] = PolicyRule(record.rule, record.handle, slot)
        made = {record.handle for record in come} | (set(again) & rules.keys())
        if not come and not gone and deltas and all(each.is_small for each in deltas.values()):
            windows = {version: windows_of(version, deltas.values()) for version in BITS}
            columns = with_sets(self._columns, (rules[handle] for handle in made), sets, windows)
            policy = spliced(self.policy, columns, made, windows)
        else:
            columns = self._columns.changed(made | gone, (rules[handle] for handle in made), sets)
            policy = None
        freed = tuple(self.policy_rules[handle].slot for handle in gone if handle not in rules)
        come_slots = [(rules[record.handle].slot, record.rule) for record in come]
        named, fresh_entries = self.policy.named.changed(
            {*freed, *(slot for slot, _ in come_slots)}, come_slots, sets, self._counting
        )
        policy = replace(policy, named=named) if policy else compile_columns(columns, interfaces, named)
        self._check_words(policy)
        change = self.addresses.change(
            addresses, self.policy, policy, tuple(fresh), fresh_entries=fresh_entries
        )
        return RulesetPlan(
            addresses, change, rules, columns, policy, tuple(fresh), fresh_entries, freed, sets
        )

    def _check_words(self, policy: Policy) -> None:
        """Rules that enforce and rules that observe fill words of their own, so both kinds together may need one word
        more than the rules would alone."""
        room = self._slots // 2
        words = max(hook.words for hook in policy.hooks)
        if words > policy_words(room):
            raise table_full("policy_rules", room, words * 64, "bpf.max_rules", "rules")

    def plan_import(self, arriving: Sequence[Entries]) -> RulesetPlan:
        """Address rules by the million."""
        addresses = self.addresses.plan_many(arriving)
        return self._without_policy(addresses)

    def plan_never_drop(self, before: Sequence[Prefix], after: Sequence[Prefix]) -> RulesetPlan | None:
        """The list that no rule beats; None for no change."""
        if set(before) == set(after):
            return None
        addresses = self.addresses.plan_spared(set(before) - set(after), set(after) - set(before))
        return self._without_policy(addresses)

    def plan_interfaces(self, interfaces: Mapping[str, int]) -> RulesetPlan | None:
        """What a change of the protected interfaces means for rules that name some; None for nothing."""
        if not self._columns.names_interfaces:
            return None
        return self._plan_policy(self.addresses.plan((), ()), set(), (), interfaces, self.sets)

    def planned(self, plan: RulesetPlan) -> Planned:
        """The rules as they will be, for who asks about packets. Nothing is copied."""
        rules = self.policy_rules if plan.policy_rules is None else plan.policy_rules
        return Planned(PlannedAddresses(self.addresses, plan.addresses), rules, plan.sets)

    def users_of(self, name: str) -> set[int]:
        """Handles of the rules that name a set."""
        return self.addresses.layers.handles_of(name) | self._naming({name})

    def _naming(self, names: Collection[str]) -> set[int]:
        """Handles of the policy rules that name one of these sets."""
        return {
            handle
            for handle, each in self.policy_rules.items()
            if any(name in names for name in each.rule.sets)
        }

    def forget_set(self, name: str) -> None:
        """Which no rule names."""
        self.sets = {each: keys for each, keys in self.sets.items() if each != name}

    def commit(self, plan: RulesetPlan) -> None:
        self.addresses.commit(plan.addresses)
        self.sets = plan.sets
        if plan.policy_rules is None or plan.columns is None or plan.policy is None:
            return
        self.policy_rules, self._columns, self.policy = plan.policy_rules, plan.columns, plan.policy
        for slot in plan.fresh_slots:
            self._free_slots.remove(slot)
        # Freed slots go to the end: until they are cleared for a new rule, packets of the old epoch may count.
        self._free_slots.extend(plan.freed_slots)
        self._known_slots.clear()

    def load(
        self,
        records: Iterable[Record],
        imported: Sequence[Entries],
        interfaces: Mapping[str, int],
        never_drop: Sequence[Prefix] = (),
        sets: Sets | None = None,
    ) -> tuple[int, ...]:
        """Everything that is stored, at the start. Answers the slots whose counters must start at 0; `fresh_entries`
        has those of entries of sets."""
        self.sets = sets or {}
        self.addresses.commit(self.addresses.plan_spared((), never_drop))
        for entries in imported:
            self.commit(self.plan_import([entries]))
        plan = self.plan((), list(records), interfaces)
        self.commit(plan)
        self._known_slots.clear()  # also what a change counted that never became durable
        used = {each.slot for each in self.policy_rules.values()}
        self._free_slots = deque(slot for slot in range(self._slots) if slot not in used)
        self._counting.clear()
        self.policy = replace(self.policy, named=self.policy.named.loaded())
        self.fresh_entries = plan.fresh_entries
        return plan.fresh_slots
