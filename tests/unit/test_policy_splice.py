"""A few entries of sets that come and go: the policy is what compiling all of it makes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from firewall.address import BITS, Prefix
from firewall.address_index import encode_many
from firewall.policy import Policy, compile_columns
from firewall.policy_addresses import Intervals
from firewall.policy_columns import PolicyRule, rule_columns
from firewall.rule import rule_from_fields
from firewall.ruleset import Ruleset
from firewall.set_keys import NO_KEYS, SetKeys, delta, distinct
from firewall.store import Record
from tests.datapath.contents import merged
from tests.unit.image import starts_of

NAMES = ("a", "b")
RULES: list[dict[str, Any]] = [
    {"sources": ["@a"], "destination_ports": [22], "direction": "both"},
    {"sources": ["@a", "10.0.0.0/30", "2001:db8::/126"], "destinations": ["@b"]},
    {"destinations": ["@b", "@a"], "protocols": ["udp"], "family": "ipv4"},
    {"sources": ["10.0.0.0/29", "2001:db8::/64"], "protocols": ["tcp"], "direction": "both"},
    {"sources": ["@b"], "mode": "observe", "direction": "egress"},
]


def records(rules: list[dict[str, Any]]) -> list[Record]:
    made = []
    for handle, fields in enumerate(rules, 1):
        rule = rule_from_fields(fields, f"r{handle}", 0.0)
        made.append(Record(handle, rule, 0.0, 0.0))
    return made


def keys_of(prefixes: set[Prefix]) -> SetKeys:
    parts = []
    for version in (4, 6):
        mine = [each for each in prefixes if each.version == version]
        raw = b"".join(each.address.to_bytes(BITS[version] // 8, "big") for each in mine)
        addresses = np.frombuffer(raw, np.uint8).reshape(-1, BITS[version] // 8)
        lengths = np.array([each.length for each in mine], np.uint8)
        parts.append(distinct(encode_many(version, 0, lengths, addresses)))
    return SetKeys(*parts)


def random_prefix(rng: random.Random) -> Prefix:
    """They nest, and reach to both ends of the addresses."""
    version = rng.choice((4, 6))
    bits = BITS[version]
    base = rng.choice((0, (10 << 24) if version == 4 else 0x20010DB8 << 96, (1 << bits) - 1))
    length = rng.choice((0, 1, bits - 8, bits - 4, bits - 3, bits - 2, bits - 1, bits, bits, bits))
    address = base ^ rng.getrandbits(4)
    return Prefix(version, address >> (bits - length) << (bits - length), length)


@pytest.mark.parametrize("seed", range(40))
def test_property_a_spliced_policy_is_the_compiled_one(seed: int) -> None:
    rng = random.Random(seed)
    ruleset = Ruleset(32, {})
    present: dict[str, set[Prefix]] = {
        name: {random_prefix(rng) for _ in range(rng.choice((0, 3, 12)))} for name in NAMES
    }
    contents = {name: keys_of(prefixes) for name, prefixes in present.items()}
    rules = records(rng.sample(RULES, rng.randint(1, len(RULES))))
    ruleset.load(rules, (), {}, (), contents)
    spliced_only = compiled_anew = 0
    for _ in range(30):
        deltas = {}
        for name in rng.choice((("a",), ("b",), NAMES)):
            come = {random_prefix(rng) for _ in range(rng.choice((0, 1, 1, 3)))} - present[name]
            gone = set(rng.sample(sorted(present[name]), min(len(present[name]), rng.choice((0, 1, 2)))))
            present[name] = present[name] - gone | come
            deltas[name] = delta(ruleset.sets[name], keys_of(come), keys_of(gone))
        pieces = ruleset.policy.pieces
        plan = ruleset.plan((), (), {}, deltas=deltas)
        ruleset.commit(plan)
        if ruleset.policy.pieces is pieces:
            spliced_only += 1
        else:
            compiled_anew += 1
        assert_as_compiled(ruleset, present)
    assert spliced_only


def assert_as_compiled(ruleset: Ruleset, present: dict[str, set[Prefix]]) -> None:
    contents = {name: keys_of(prefixes) for name, prefixes in present.items()}
    for name, keys in contents.items():
        for version in BITS:
            assert np.array_equal(ruleset.sets[name].of(version), keys.of(version))
            for found, wanted in zip(ruleset.sets[name].ranges(version), keys.ranges(version), strict=True):
                assert np.array_equal(found, wanted)
    fresh = rule_columns([PolicyRule(*each) for each in ruleset.policy_rules.values()], contents)
    for version in BITS:
        assert as_rows(ruleset.columns, version) == as_rows(fresh, version)
    wanted_policy = compile_columns(fresh, {})
    for image, wanted_image in zip(ruleset.policy.hooks, wanted_policy.hooks, strict=True):
        assert np.array_equal(image.rules, wanted_image.rules)
        for version in BITS:
            both = zip(image.intervals(version), wanted_image.intervals(version), strict=True)
            for mine, others in both:
                assert of_vectors(ruleset.policy, mine) == of_vectors(wanted_policy, others)


def of_vectors(policy: Policy, intervals: Intervals) -> list[tuple[int, bytes]]:
    """Neighbours of one vector are one."""
    vectors = [policy.address_vector(each).tobytes() for each in intervals.classes.tolist()]
    return merged(starts_of(intervals), vectors)


def as_rows(columns: Any, version: int) -> list[tuple[Any, ...]]:
    ranges = columns.prefixes(version)
    handles = columns.handles[ranges.rows].tolist()
    rest = (ranges.sides.tolist(), ranges.starts.tolist(), ranges.ends.tolist(), ranges.lengths.tolist())
    return sorted(zip(handles, *rest, strict=True))


def test_a_large_change_is_compiled_as_a_whole() -> None:
    ruleset = Ruleset(32, {})
    ruleset.load(records(RULES[:1]), (), {}, (), {"a": NO_KEYS})
    come = keys_of({Prefix(4, 10 << 24 | 2 * number, 32) for number in range(50)})
    pieces = ruleset.policy.pieces
    ruleset.commit(ruleset.plan((), (), {}, deltas={"a": delta(NO_KEYS, come, NO_KEYS)}))
    assert ruleset.policy.pieces is not pieces
    assert ruleset.policy.intervals_of(4) == 2 * (2 * 50 + 1 + 1)
