"""The address tables against a naive model: whatever changes, edits lead to the winners and their bits."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall.address import parse_prefix
from firewall.address_index import decoded
from firewall.addresses import AddressPlan, AddressTables, address_keys
from firewall.datapath import Change, Entry, Key, Occupancy
from firewall.rule import Rule, rule_from_fields
from tests.unit.naive_addresses import (
    Handled,
    naive_entries,
    naive_occupancy,
    naive_winners,
)

PREFIXES = (
    "10.0.0.1", "10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "192.0.2.0/31", "192.0.0.0/15",
    "2001:db8::1", "2001:db8::/64", "2001:db8::/32", "2001:db8::/33", "2000::/3", "::/0",
)  # fmt: skip


def rule(rule_id: str = "r", **fields: Any) -> Rule:
    return rule_from_fields(fields, rule_id, 0.0)


def random_rule(rng: random.Random, number: int) -> Rule:
    side = rng.choice(("sources", "destinations"))
    return rule(
        f"r{number}",
        action=rng.choice(("drop", "allow")),
        priority=rng.choice((0, 1000, 1000, 1001)),
        direction=rng.choice(("ingress", "egress", "both")),
        family=rng.choice(("any", "any", "ipv4", "ipv6")),
        **{side: rng.sample(PREFIXES, rng.randint(1, 4))},
    )


def all_winners(tables: AddressTables) -> dict[Key, Entry]:
    return {key: entry for version in (4, 6) for key, entry in decoded(tables.winners(version))}


@dataclass
class Tables:
    """What a kernel would hold: it does as it is told and notices what cannot be."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    occupancy: Occupancy = field(default_factory=Occupancy)

    def perform(self, change: Change) -> None:
        assert len({edit.key for edit in change.edits}) == len(change.edits), "one edit a key"
        for key, old, new in change.edits:
            assert self.entries.pop(key, None) == old
            if new is not None:
                self.entries[key] = new
        assert self.occupancy == change.before
        self.occupancy = change.after

    def is_what_these_mean(self, rules: Iterable[Handled]) -> None:
        winners = naive_winners(rules)
        assert self.entries == winners
        assert self.occupancy == naive_occupancy(winners)


@dataclass
class World:
    """The tables under test beside what was told to a kernel and the rules that live."""

    tables: AddressTables = field(default_factory=AddressTables)
    kernel: Tables = field(default_factory=Tables)
    live: dict[int, Rule] = field(default_factory=dict)
    next_handle: int = 1

    def draw(self, rng: random.Random) -> tuple[list[Handled], list[Handled]]:
        """Rules to remove and to add; some that go come back changed under their handle."""
        removed = [(each, handle) for handle, each in self.live.items() if rng.random() < 0.3]
        added = [(random_rule(rng, handle), handle) for _, handle in removed if rng.random() < 0.5]
        for _ in range(rng.randint(0, 4)):
            added.append((random_rule(rng, self.next_handle), self.next_handle))
            self.next_handle += 1
        return removed, added

    def commit(self, plan: AddressPlan, removed: Iterable[Handled], added: Iterable[Handled]) -> None:
        self.kernel.perform(self.tables.change(plan, None, None))
        self.tables.commit(plan)
        for _, handle in removed:
            del self.live[handle]
        self.live |= {handle: each for each, handle in added}

    def handled(self) -> list[Handled]:
        return [(each, handle) for handle, each in self.live.items()]


@given(st.integers(0, 2**32))
def test_any_changes_lead_to_just_the_winners_of_the_rules_that_live(seed: int) -> None:
    rng, world = random.Random(seed), World()
    for _ in range(8):
        removed, added = world.draw(rng)
        plan = world.tables.plan(removed, added)
        world.kernel.is_what_these_mean(world.handled())
        world.commit(plan, removed, added)
        world.kernel.is_what_these_mean(world.handled())
        assert all_winners(world.tables) == world.kernel.entries
        assert world.tables.occupancy == world.kernel.occupancy


@given(st.integers(0, 2**32))
def test_a_plan_says_the_sizes_after_it_and_changes_nothing(seed: int) -> None:
    rng, world = random.Random(seed), World()
    for _ in range(4):
        removed, added = world.draw(rng)
        before = world.tables.sizes()
        plan = world.tables.plan(removed, added)
        assert world.tables.sizes() == before
        world.commit(plan, removed, added)
        winners = naive_winners(world.handled())
        by_version = {version: sum(key.version == version for key in winners) for version in (4, 6)}
        assert world.tables.sizes(plan) == world.tables.sizes() == by_version


@given(st.integers(0, 2**32))
def test_the_inverse_of_a_change_takes_it_back(seed: int) -> None:
    rng, world = random.Random(seed), World()
    for _ in range(4):
        removed, added = world.draw(rng)
        plan = world.tables.plan(removed, added)
        change = world.tables.change(plan, None, None)
        world.kernel.perform(change)
        world.kernel.perform(change.inverse())
        world.kernel.is_what_these_mean(world.handled())
        world.commit(plan, removed, added)


@given(st.integers(0, 2**32))
def test_losers_are_kept_in_their_order(seed: int) -> None:
    rng, world = random.Random(seed), World()
    for _ in range(5):
        removed, added = world.draw(rng)
        world.commit(world.tables.plan(removed, added), removed, added)
    for key, found in naive_entries(world.handled()).items():
        assert [entry.handle for entry in world.tables.entries(key)] == [handle for _, _, handle, _ in found]


@given(
    st.integers(0, 2**32), st.sampled_from((*PREFIXES, "10.0.0.2", "10.1.0.0/16", "2001:db8::2", "fe80::/10"))
)
def test_the_entries_that_cover_a_prefix_are_found_in_every_list(seed: int, text: str) -> None:
    rng, world = random.Random(seed), World()
    removed, added = world.draw(rng)
    world.commit(world.tables.plan(removed, added), removed, added)
    prefix = parse_prefix(text)
    found = {entry.handle for entry in world.tables.covering(*prefix)}
    assert found == {
        handle
        for each, handle in world.handled()
        for own in (*each.sources, *each.destinations)
        if own.covers(prefix) and each.family in ("any", f"ipv{own.version}")
    }


# --- in single steps


def test_of_equals_the_older_rule_wins_whatever_the_order_in_which_they_come() -> None:
    one, other = rule(sources="10.0.0.1"), rule(sources="10.0.0.1")
    (key,) = address_keys(one)
    for order in ([(one, 1), (other, 2)], [(other, 2), (one, 1)]):
        tables = AddressTables()
        for each in order:
            tables.commit(tables.plan((), [each]))
        assert tables.winner(key) == Entry(one.rank, 1)


def test_a_loser_that_comes_or_goes_is_no_edit() -> None:
    tables = AddressTables()
    winner, loser = rule(sources="10.0.0.1"), rule(sources="10.0.0.1", action="allow")
    tables.commit(tables.plan((), [(winner, 1)]))
    plan = tables.plan((), [(loser, 2)])
    assert not plan.edits
    tables.commit(plan)
    plan = tables.plan([(loser, 2)], ())
    assert not plan.edits


def test_a_winner_that_goes_leaves_its_place_to_the_next() -> None:
    tables = AddressTables()
    winner, loser = rule(sources="10.0.0.1"), rule(sources="10.0.0.1", action="allow")
    tables.commit(tables.plan((), [(winner, 1), (loser, 2)]))
    ((key, old, new),) = tables.plan([(winner, 1)], ()).edits
    assert (old, new) == (Entry(winner.rank, 1), Entry(loser.rank, 2))
    assert key == address_keys(winner)[0]


def test_a_rule_that_changes_nothing_for_packets_is_no_edit() -> None:
    tables = AddressTables()
    tables.commit(tables.plan((), [(rule(sources="10.0.0.1"), 1)]))
    plan = tables.plan([(rule(sources="10.0.0.1"), 1)], [(rule(sources="10.0.0.1", description="x"), 1)])
    assert not plan.edits


def test_a_length_is_there_until_the_last_of_its_prefixes_goes() -> None:
    tables = AddressTables()
    one, other = rule(sources="10.0.0.1"), rule(sources="10.0.0.2")
    has_32 = Occupancy(lengths4=(1 << 32, 0, 0, 0))
    tables.commit(tables.plan((), [(one, 1), (other, 2)]))
    assert tables.occupancy == has_32
    tables.commit(tables.plan([(one, 1)], ()))
    assert tables.occupancy == has_32
    tables.commit(tables.plan([(other, 2)], ()))
    assert tables.occupancy == Occupancy()


@pytest.mark.parametrize(
    ("fields", "scopes"),
    [
        ({"sources": "10.0.0.1"}, [0]),
        ({"destinations": "10.0.0.1"}, [1]),
        ({"sources": "10.0.0.1", "direction": "egress"}, [2]),
        ({"destinations": "10.0.0.1", "direction": "both"}, [1, 3]),
        ({"sources": "10.0.0.1", "family": "ipv6"}, []),
    ],
)
def test_the_list_of_a_prefix_is_its_hook_and_side(fields: dict[str, Any], scopes: list[int]) -> None:
    assert [key.scope for key in address_keys(rule(**fields))] == scopes


def test_a_rule_that_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(ValueError):
        AddressTables().plan([(rule(sources="10.0.0.1"), 1)], ())
