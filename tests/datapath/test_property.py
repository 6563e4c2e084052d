"""Random rule sets and frames: the loaded programs and the oracle agree on verdict, reason and counted rule.

PROPERTY_PAIRS says how many pairs of rule set and frame to try. A failure prints the seed, the frame and the
smallest rule set that still shows it. The same seed gives the same rules and frames.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests import oracle
from tests.datapath import sets
from tests.datapath.contents import assert_exact
from tests.datapath.frames import tcp, udp
from tests.datapath.loaded import ELSEWHERE, HERE, Loaded, runnable
from tests.random_rules import random_frame, random_rules

Rule = dict[str, Any]
HOOKS = ("ingress", "egress")
LINKS = ("ethernet", "ip")
NAMES = ("pretended-interface-0", "pretended-interface-1")
GLOBS = (*NAMES, "pretended-*", "*-1", "none-*")
PAIRS = int(os.environ.get("PROPERTY_PAIRS", "8000"))
FRAMES_A_SET = 40
# Every way of setting up the filter, and which name the packets' interface has.
FILTERS: list[dict[str, str]] = [
    {},
    {"malformed": "pass"},
    {"fragments": "drop"},
    {"default_ingress": "drop"},
    {"malformed": "pass", "default_ingress": "drop", "default_egress": "drop"},
    {"malformed": "pass", "fragments": "drop", "default_egress": "drop"},
]
PLACES = [{NAMES[0]: HERE, NAMES[1]: ELSEWHERE}, {NAMES[0]: ELSEWHERE, NAMES[1]: HERE}, {NAMES[0]: ELSEWHERE}]


class Arrival(NamedTuple):
    """A frame, and how it comes."""

    frame: bytes
    hook: str
    link: str


class World(NamedTuple):
    """What beside the rules a verdict depends on."""

    settings: dict[str, str]
    interface: str
    sets: Mapping[str, list[str]] = MappingProxyType({})

    def judge(self, rules: Sequence[Rule], arrival: Arrival) -> oracle.Judgement:
        return oracle.judge(
            rules,
            arrival.frame,
            direction=arrival.hook,
            interface=self.interface,
            link=arrival.link,
            default_action=self.settings.get(f"default_{arrival.hook}", "allow"),
            fragments=self.settings.get("fragments", "match"),
            malformed=self.settings.get("malformed", "drop"),
            sets=self.sets,
        )


def rank_of(rules: Sequence[Rule], rule_id: str | None) -> tuple[int, int] | None:
    return next((oracle.rank(rule) for rule in rules if rule["id"] == rule_id), None)


def hits_by_rank(firewall: Loaded, rules: Sequence[Rule]) -> Counter[tuple[tuple[int, int] | None, str]]:
    """Packets and bytes. Of equally ranked rules any may count, so those are one."""
    total: Counter[tuple[tuple[int, int] | None, str]] = Counter()
    for rule_id, (packets, size) in firewall.all_hits().items():
        rank = rank_of(rules, rule_id)
        total[rank, "packets"] += packets
        total[rank, "bytes"] += size
    return total


def disagreement(
    firewall: Loaded, world: World, rules: Sequence[Rule], arrivals: Sequence[Arrival]
) -> str | None:
    """The first thing on which programs and oracle differ, None where they do not."""
    firewall.rules()
    sets.put(firewall, world.sets)
    firewall.rules(*rules)
    expected_entries = sets.Expected()
    expected_hits: Counter[tuple[tuple[int, int] | None, str]] = Counter()
    for arrival in arrivals:
        expected = world.judge(rules, arrival)
        found = firewall.judge(arrival.frame, arrival.hook, arrival.link)
        if found != (expected.verdict, expected.reason):
            return f"{arrival.hook} {arrival.link} {arrival.frame.hex()}\njudged {found}, expected {expected}"
        if expected.rule_id is not None:
            rank = rank_of(rules, expected.rule_id)
            expected_hits[rank, "packets"] += 1
            expected_hits[rank, "bytes"] += len(arrival.frame)
        counting = oracle.counted_entries(rules, world.sets, arrival.frame, expected, arrival.link)
        expected_entries.count(counting, len(arrival.frame))
        for rule_id in expected.observed:
            rank = rank_of(rules, rule_id)
            expected_hits[rank, "packets"] += 1
            expected_hits[rank, "bytes"] += len(arrival.frame)
    counted = hits_by_rank(firewall, rules)
    if counted != expected_hits:
        return f"counted {dict(counted)}, expected {dict(expected_hits)}"
    entries = sets.counted(firewall)
    if sets.have_different_ranks(rules) and entries != expected_entries.hits:
        return f"entries counted {entries}, expected {expected_entries.hits}"
    return None


def smallest(firewall: Loaded, world: World, rules: list[Rule], arrivals: list[Arrival]) -> str:
    """Leaves out arrivals, then rules one by one, while a disagreement stays."""
    arrivals = next(([each] for each in arrivals if disagreement(firewall, world, rules, [each])), arrivals)
    for rule in list(rules):
        fewer = [each for each in rules if each is not rule]
        if disagreement(firewall, world, fewer, arrivals):
            rules = fewer
    listed = "\n".join(map(str, rules))
    return f"{world}\n{disagreement(firewall, world, rules, arrivals)}\nrules:\n{listed}"


def random_arrivals(rng: random.Random, count: int) -> list[Arrival]:
    arrivals = []
    for _ in range(count):
        hook, link = rng.choice(HOOKS), rng.choice((*LINKS, "ethernet"))
        frame = random_frame(rng, link)
        arrivals.append(Arrival(runnable(frame, hook), hook, link))
    return arrivals


@pytest.mark.parametrize("part", range(8))
def test_property_programs_and_oracle_agree(firewall: Loaded, part: int) -> None:
    rule_sets = -(-PAIRS // (8 * FRAMES_A_SET))
    for number in range(rule_sets):
        seed = number * 8 + part
        rng = random.Random(seed)
        settings = FILTERS[number * len(FILTERS) // rule_sets]
        place = rng.choice(PLACES)
        firewall.configure(**settings)
        firewall.name_interfaces(**place)
        interface = next((name for name, ifindex in place.items() if ifindex == HERE), "unnamed")
        world = World(settings, interface, sets.random_content(rng))
        rules = random_rules(rng, rng.choice((1, 2, 5, 12, 12, 30, 80)), GLOBS, sets.NAMES)
        if rng.random() < 0.5:
            rules = sets.of_different_ranks(rng, rules)
        arrivals = random_arrivals(rng, FRAMES_A_SET)
        if disagreement(firewall, world, rules, arrivals):
            pytest.fail(f"seed {seed}: {smallest(firewall, world, rules, arrivals)}", pytrace=False)
    sets.forget(firewall)


# --- scale -------------------------------------------------------------------------------------------------


def address(rng: random.Random, version: int) -> str:
    """Half of them crowd together, so that prefixes nest and buckets are shared."""
    crowd = {4: 0x0A000000, 6: 0x20010DB8 << 96}[version]
    bits = {4: 32, 6: 128}[version]
    if rng.random() < 0.5:
        return str(ip_address(crowd + rng.getrandbits(bits - rng.choice((8, 16)) if version == 4 else 96)))
    number = rng.getrandbits(bits)
    return str(ip_address(number if version == 4 else number | 1 << 127))


def network(rng: random.Random, version: int, shortest: int) -> str:
    bits = {4: 32, 6: 128}[version]
    length = rng.randint(shortest, bits)
    kept = int(ip_address(address(rng, version))) >> (bits - length) << (bits - length)
    text = str(ip_address(kept)) if version == 4 else str(ip_address(kept.to_bytes(16, "big")))
    return f"{text}/{length}"


def random_policy_rule(rng: random.Random) -> Rule:
    first = rng.randrange(65536)
    last = min(65535, first + rng.choice((0, 0, 9, 999)))
    rule: Rule = {"protocols": rng.choice((["tcp"], ["udp"], ["tcp", "udp"]))}
    rule[rng.choice(("source_ports", "destination_ports"))] = [f"{first}-{last}"]
    version = rng.choice((4, 6))
    for side in ("sources", "destinations"):
        if rng.random() < 0.4:
            rule[side] = [network(rng, version, 2)]
    return rule


def large_rule_set(rng: random.Random, policy: int, addresses: int) -> list[Rule]:
    rules: list[Rule] = []
    for number in range(addresses):
        version = rng.choice((4, 6))
        shortest = 0 if number < 20 else 6
        rules.append({rng.choice(("sources", "destinations")): [network(rng, version, shortest)]})
    rules += [random_policy_rule(rng) for _ in range(policy)]
    rng.shuffle(rules)
    for place, rule in enumerate(rules):
        rule |= {
            "id": f"r{place}",
            "priority": rng.randrange(65536),
            "action": rng.choice(("drop", "allow")),
            "direction": rng.choice(("ingress", "egress", "both")),
        }
    return rules


def address_in(rng: random.Random, prefix: str) -> str:
    inside = ip_network(prefix)
    return str(inside.network_address + rng.randrange(inside.num_addresses))


def frame_towards(rng: random.Random, rules: Sequence[Rule]) -> bytes:
    """A packet that some rule is about to meet, and chance decides on the rest."""
    rule = rng.choice(rules)
    prefixes = [rule[side][0] for side in ("sources", "destinations") if side in rule]
    version = ip_network(prefixes[0]).version if prefixes else rng.choice((4, 6))
    ends = [
        address_in(rng, rule[side][0]) if side in rule else address(rng, version)
        for side in ("sources", "destinations")
    ]
    ports = [
        int(rule[side][0].partition("-")[0]) if side in rule else rng.randrange(65536)
        for side in ("source_ports", "destination_ports")
    ]
    return rng.choice((tcp, udp))(ends[0], ends[1], ports[0], ports[1])


def test_4096_policy_rules_and_10000_nested_prefixes_are_judged_as_by_the_oracle(firewall: Loaded) -> None:
    rng = random.Random(4096)
    rules = large_rule_set(rng, 4096, 10_000)
    world = World({}, NAMES[0])
    arrivals = [Arrival(frame_towards(rng, rules), hook, "ethernet") for _ in range(75) for hook in HOOKS]
    outcomes = {world.judge(rules, arrival).verdict for arrival in arrivals[:20]}
    assert outcomes == {"pass", "drop"}
    assert disagreement(firewall, world, rules, arrivals) is None


def crowded_network(rng: random.Random, version: int) -> str:
    """Of few large networks, some /16 of which hold hundreds of nested prefixes."""
    bits = {4: 32, 6: 128}[version]
    around = rng.choice({4: (0x0A010000, 0xC6120000), 6: (0x20010DB8 << 96, 0x2A000001 << 96)}[version])
    address_bits = around | rng.getrandbits(16) << rng.choice({4: (0,), 6: (0, 0, 0, 48, 80)}[version])
    length = rng.choice(
        (15, 17, 20, 22, 24, 27, 29, 30, 31, 32, 32, 32)
        if version == 4
        else (33, 48, 64, 120, 126, 127, 128, 128, 128)
    )
    kept = address_bits >> (bits - length) << (bits - length)
    return f"{ip_address(kept.to_bytes(bits // 8, 'big'))}/{length}"


def crowded_rule(rng: random.Random, is_policy: bool) -> Rule:
    version = rng.choice((4, 6))
    sides = rng.choice((["sources"], ["destinations"], ["sources", "destinations"]))
    rule: Rule = {
        side: [crowded_network(rng, version) for _ in range(rng.choice((1, 1, 3)))] for side in sides
    }
    if is_policy:
        rule["protocols"] = rng.choice((["tcp"], ["udp"], ["tcp", "udp"]))
        rule[rng.choice(("source_ports", "destination_ports"))] = [
            rng.choice(("0-1023", "22", "53", "80-8080"))
        ]
    elif len(sides) == 2:
        del rule[sides[rng.randrange(2)]]
    return rule


def test_10000_rules_in_crowded_networks_are_judged_as_by_the_oracle(firewall: Loaded) -> None:
    rng = random.Random(10_000)
    rules = [crowded_rule(rng, is_policy=number < 4096) for number in range(10_000)]
    rng.shuffle(rules)
    for number, rule in enumerate(rules):
        first = (
            0 if "protocols" in rule else 2500
        )  # else the many address rules would leave little to the policy
        rule |= {
            "id": f"r{number}",
            "priority": first + rng.randrange(3000),
            "action": rng.choice(("drop", "allow")),
        }
        rule["direction"] = rng.choice(("ingress", "egress", "both"))
    world = World({}, NAMES[0])
    policy = [rule for rule in rules if "protocols" in rule]
    arrivals = [
        Arrival(frame_towards(rng, rng.choice((rules, policy))), hook, "ethernet")
        for _ in range(120)
        for hook in HOOKS
    ]
    by_id = {rule["id"]: rule for rule in rules}
    winners = {world.judge(rules, arrival).rule_id for arrival in arrivals} - {None}
    kinds = {
        (
            "protocols" in by_id[each],
            ip_network((by_id[each].get("sources") or by_id[each]["destinations"])[0]).version,
        )
        for each in winners
        if each is not None
    }
    assert len(winners) > 60 and len(kinds) == 4, "rules of both structures and of both families decide"
    assert disagreement(firewall, world, rules, arrivals) is None


# --- sequences of changes ----------------------------------------------------------------------------------


def change(firewall: Loaded, rng: random.Random, rules: dict[str, Rule], number: int) -> str:
    """One random change, made to the firewall and to `rules`, oldest first."""
    kind = rng.choices(("add", "edit", "delete", "batch", "replace", "disable"), (30, 25, 20, 15, 3, 7))[0]
    fresh = [
        {**rule, "id": f"c{number}-{rule['id']}"} for rule in random_rules(rng, rng.randint(1, 6), GLOBS)
    ]
    known = list(rules)
    if kind == "add" or not known:
        firewall.add(**fresh[0])
        rules[fresh[0]["id"]] = fresh[0]
    elif kind in ("edit", "disable"):
        chosen = rng.choice(known)
        new = {**fresh[0], "id": chosen} if kind == "edit" else {**rules[chosen], "enabled": False}
        firewall.put(new)
        rules[chosen] = new
    elif kind == "delete":
        firewall.delete(known[0] if rng.random() < 0.3 else rng.choice(known))
        present = {view.id for view in firewall.enforcer.export()[0]}
        for gone in set(rules) - present:
            del rules[gone]
    elif kind == "batch":
        going = rng.sample(known, rng.randint(0, min(4, len(known))))
        firewall.batch(fresh, going)
        for each in going:
            del rules[each]
        rules |= {rule["id"]: rule for rule in fresh}
    else:
        kept = [rule for rule in rules.values() if rng.random() < 0.7]
        firewall.rules(*kept, *fresh)
        rules.clear()
        rules |= {rule["id"]: rule for rule in [*kept, *fresh]}
    return kind


@pytest.mark.parametrize("seed", range(6))
def test_property_after_any_sequence_of_changes_the_maps_are_those_of_a_fresh_start(
    firewall: Loaded, seed: int
) -> None:
    rng = random.Random(seed)
    world, rules, history = World({}, NAMES[0]), dict[str, Rule](), list[str]()
    for number in range(25):
        history.append(change(firewall, rng, rules, number))
        for arrival in random_arrivals(rng, 6):
            expected = world.judge(list(rules.values()), arrival)
            found = firewall.judge(arrival.frame, arrival.hook, arrival.link)
            assert found == (expected.verdict, expected.reason), (
                seed,
                history,
                arrival,
                list(rules.values()),
            )
        if rng.random() < 0.3:
            assert_exact(firewall)
    assert_exact(firewall)
    firewall.restart()
    assert_exact(firewall)
