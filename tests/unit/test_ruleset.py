"""The rule set: which structure holds a rule, whose counter is whose, both images against the oracle."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firewall.address_index import decoded
from firewall.datapath import Entry, Key
from firewall.errors import TableFull
from firewall.layout import C
from firewall.policy import Policy
from firewall.rule import rule_from_fields
from firewall.ruleset import Ruleset, is_policy
from firewall.store import Record
from tests import oracle, random_rules
from tests.unit.image import verdict

INTERFACES = {"eth0": 2, "eth1": 3}
GLOBS = ("eth0", "eth*", "wg0")
HOOKS = ("ingress", "egress")
SEEDS = st.integers(0, 2**32)


def record(handle: int, **fields: Any) -> Record:
    return Record(handle, rule_from_fields(fields, f"r{handle}", 0.0), 0.0, 0.0)


def web(handle: int, **fields: Any) -> Record:
    """A policy rule."""
    return record(handle, destination_ports=[80], **fields)


def host(handle: int, **fields: Any) -> Record:
    """A rule for the address tables."""
    return record(handle, **{"sources": f"10.0.0.{handle}"} | fields)


def ruleset(slots: int = 8, used: dict[int, int] | None = None) -> Ruleset:
    return Ruleset(slots, used or {})


def change(rules: Ruleset, removed: list[Record], added: list[Record]) -> tuple[int, ...]:
    """Plans and commits; the slots that must start at 0."""
    plan = rules.plan(removed, added, INTERFACES)
    rules.commit(plan)
    return plan.fresh_slots


def winners(rules: Ruleset) -> dict[Key, Entry]:
    return {key: entry for version in (4, 6) for key, entry in decoded(rules.addresses.winners(version))}


def slots(rules: Ruleset) -> dict[int, int]:
    return {handle: each.slot for handle, each in rules.policy_rules.items()}


def as_values(policy: Policy) -> list[Any]:
    return [
        *(rows.tolist() for _, rows in policy.pieces),
        *(each.vectors.tolist() for _, each in policy.classes),
        *(image.rules.tolist() for image in policy.hooks),
    ]


# --- the split


def test_address_rules_go_to_the_tables_and_all_others_to_the_policy() -> None:
    rules = ruleset()
    change(rules, [], [host(1), web(2), host(3)])
    assert rules.policy_rules.keys() == {2}
    assert {entry.handle for entry in winners(rules).values()} == {1, 3}
    assert [is_policy(each) for each in (host(1), web(2))] == [False, True]


def test_a_disabled_rule_is_nowhere() -> None:
    rules = ruleset()
    plan = rules.plan([], [host(1, enabled=False), web(2, enabled=False)], INTERFACES)
    assert not plan.change.edits and plan.policy is None
    rules.commit(plan)
    assert not rules.policy_rules and not winners(rules)
    assert not rules.plan([host(1, enabled=False), web(2, enabled=False)], [], INTERFACES).change.edits


@pytest.mark.parametrize(("before", "after"), [(host, web), (web, host)])
def test_a_rule_may_go_from_one_structure_to_the_other(before: Any, after: Any) -> None:
    rules = ruleset()
    change(rules, [], [before(1)])
    change(rules, [before(1)], [after(1)])
    in_policy = after is web
    assert (1 in rules.policy_rules) == in_policy
    assert len(winners(rules)) == (not in_policy)


def test_a_change_of_addresses_leaves_the_policy_as_it_is() -> None:
    rules = ruleset()
    change(rules, [], [web(1)])
    plan = rules.plan([], [host(2)], INTERFACES)
    assert plan.policy is None and plan.policy_rules is None
    assert plan.change.policy is None and plan.change.policy_before is None


def test_a_change_of_the_policy_carries_the_one_before() -> None:
    rules = ruleset()
    before = rules.policy
    plan = rules.plan([], [web(1)], INTERFACES)
    assert plan.change.policy_before is before and plan.change.policy is plan.policy
    assert plan.change.inverse().policy is before


def test_a_plan_changes_nothing() -> None:
    rules = ruleset()
    change(rules, [], [web(1), host(2)])
    before = as_values(rules.policy), slots(rules), winners(rules)
    first = rules.plan([web(1), host(2)], [web(3), web(4), host(5)], INTERFACES)
    again = rules.plan([web(1), host(2)], [web(3), web(4), host(5)], INTERFACES)
    assert (as_values(rules.policy), slots(rules), winners(rules)) == before
    assert first.fresh_slots == again.fresh_slots and first.change.edits == again.change.edits


# --- slots


def test_every_policy_rule_has_a_slot_of_its_own() -> None:
    rules = ruleset(slots=6)
    assert set(change(rules, [], [web(1), web(2), web(3)])) == set(slots(rules).values())
    assert len(set(slots(rules).values())) == 3


def test_a_changed_rule_keeps_its_slot_and_what_it_counted() -> None:
    rules = ruleset()
    change(rules, [], [web(1), web(2)])
    before = slots(rules)
    assert change(rules, [web(1)], [web(1, priority=5)]) == ()
    assert slots(rules) == before
    assert rules.policy_rules[1].rule.priority == 5


def test_a_slot_that_was_freed_is_the_last_to_be_given_again_and_starts_at_0() -> None:
    rules = ruleset(slots=6)
    given = []
    for handle in range(1, 9):
        given += change(rules, [], [web(handle)])
        change(rules, [web(handle)], [])
    assert len(set(given[:6])) == 6 and given[6:] == given[:2]


def test_more_policy_rules_than_half_the_slots_are_refused_before_they_are_compiled() -> None:
    rules = ruleset(slots=4)
    change(rules, [], [web(1), web(2)])
    for added in ([web(3)], [web(n) for n in range(3, 100)]):
        with pytest.raises(TableFull, match="policy_rules holds at most 2 rules") as raised:
            rules.plan([], added, INTERFACES)
        assert raised.value.wanted == 2 + len(added)
    change(rules, [web(1)], [web(3), host(4), web(5, enabled=False)])


def test_as_many_rules_as_fill_half_the_slots_can_be_replaced_by_others_at_once() -> None:
    rules = ruleset(slots=4)
    old, new = [web(1), web(2)], [web(3), web(4)]
    change(rules, [], old)
    assert len(change(rules, old, new)) == 2
    assert len(change(rules, new, [web(5), web(6)])) == 2


@settings(max_examples=15)
@given(SEEDS)
def test_no_two_rules_share_a_slot_after_any_changes(seed: int) -> None:
    rng, rules, live, handle = random.Random(seed), ruleset(slots=10), {}, 0
    for _ in range(15):
        removed = [each for each in live.values() if rng.random() < 0.4]
        changed = [web(each.handle, priority=rng.randrange(9)) for each in removed if rng.random() < 0.5]
        if rng.random() < 0.2:
            changed = [host(each.handle) if rng.random() < 0.5 else each for each in changed]
        room = 5 - len(live) + len(removed) - len(changed)
        new = [web(handle + 1 + n) for n in range(rng.randint(0, room))]
        handle += len(new)
        before = slots(rules)
        fresh = change(rules, removed, [*changed, *new])
        for each in removed:
            del live[each.handle]
        live |= {each.handle: each for each in [*changed, *new]}
        now = slots(rules)
        assert now.keys() == {each.handle for each in live.values() if is_policy(each)}
        assert len(set(now.values())) == len(now)
        assert set(fresh) == {slot for handle, slot in now.items() if handle not in before}
        assert all(now[handle] == slot for handle, slot in before.items() if handle in now)


def test_what_the_maps_already_count_goes_on_in_its_slot() -> None:
    rules = ruleset(slots=8, used={1: 5, 9: 0})
    fresh = rules.load([web(1), web(2), host(3)], (), INTERFACES)
    assert slots(rules)[1] == 5
    assert set(fresh) == {slots(rules)[2]}
    assert slots(rules)[2] not in (0, 5)


def test_a_slot_whose_rule_is_gone_is_free_after_loading() -> None:
    rules = ruleset(slots=4, used={1: 0, 9: 1})
    rules.load([web(1)], (), INTERFACES)
    change(rules, [], [web(2)])
    assert slots(rules)[1] == 0 and slots(rules)[2] in (1, 2, 3)


def test_a_rule_that_takes_the_handle_of_one_that_never_became_durable_starts_at_0() -> None:
    rules = ruleset(slots=8, used={7: 2})
    rules.load([host(1)], (), INTERFACES)
    (fresh,) = change(rules, [], [web(7)])
    assert slots(rules) == {7: fresh}
    change(rules, [], [web(8), web(9), web(10)])
    assert len(set(slots(rules).values())) == 4


# --- interfaces


def test_interfaces_that_no_rule_names_are_no_change() -> None:
    rules = ruleset()
    change(rules, [], [web(1), host(2)])
    assert rules.plan_interfaces({"eth0": 2, "eth9": 9}) is None


def test_interfaces_that_come_are_compiled_without_another_change() -> None:
    rules = ruleset()
    change(rules, [], [web(1, interfaces="eth*"), host(2)])
    before = slots(rules)
    plan = rules.plan_interfaces({"eth9": 9})
    assert plan is not None and not plan.change.edits and plan.fresh_slots == plan.freed_slots == ()
    assert plan.policy is not None and plan.policy.hooks[0].interfaces.keys() == {9}
    rules.commit(plan)
    assert slots(rules) == before


# --- the whole image against the oracle


def check(rules: Ruleset, live: dict[int, dict[str, Any]], rng: random.Random) -> None:
    link = rng.choice(("ethernet", "ip"))
    frame = random_rules.random_frame(rng, link)
    packet = oracle.parse(frame, link)
    if packet.version is None:
        return
    for hook, direction in enumerate(HOOKS):
        name = rng.choice(tuple(INTERFACES))
        matching = [
            (oracle.rank(each), handle)
            for handle, each in sorted(live.items())
            if each.get("mode") != "observe" and oracle.matches(each, packet, direction, name)
        ]
        found = verdict(rules.policy, rules.addresses, hook, packet, INTERFACES[name])
        if not matching:
            assert found is None
            continue
        (priority, is_allow), _ = min(matching)
        assert found is not None and found[0] == C["RANK_FIRST"] + priority * 2 + is_allow
        assert found[1] in {handle for rank, handle in matching if rank == (priority, is_allow)}


@settings(max_examples=25)
@given(SEEDS)
def test_after_any_changes_the_image_judges_as_the_oracle_does(seed: int) -> None:
    rng, rules, live, handle = random.Random(seed), ruleset(slots=200), {}, 0
    for _ in range(5):
        gone = [number for number in live if rng.random() < 0.3]
        changed = {number: random_rules.random_rule(rng, GLOBS) for number in gone if rng.random() < 0.3}
        new = {handle + 1 + n: random_rules.random_rule(rng, GLOBS) for n in range(rng.randint(0, 15))}
        handle += len(new)
        added = changed | new
        change(
            rules,
            [record(number, **live[number]) for number in gone],
            [record(number, **each) for number, each in added.items()],
        )
        live = {number: each for number, each in live.items() if number not in gone} | added
        for _ in range(15):
            check(rules, live, rng)


@settings(max_examples=8)
@given(SEEDS)
def test_loading_makes_the_same_image_as_adding_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    records = [
        record(handle, **each) for handle, each in enumerate(random_rules.random_rules(rng, 20, GLOBS), 1)
    ]
    loaded, grown = ruleset(slots=40), ruleset(slots=40)
    loaded.load(records, (), INTERFACES)
    for each in records:
        change(grown, [], [each])
    assert winners(loaded) == winners(grown)
    assert loaded.addresses.occupancy == grown.addresses.occupancy
    assert as_values(loaded.policy) == as_values(grown.policy)
    for one, other in zip(loaded.policy.hooks, grown.policy.hooks, strict=True):
        assert one.rules["handle"].tolist() == other.rules["handle"].tolist()
