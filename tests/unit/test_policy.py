"""The policy compiler: its image, read bit by bit (image.py here), names the rule that the oracle names."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firewall import policy_addresses
from firewall.address import BITS, Prefix, host_bits
from firewall.layout import RANK_NONE, C
from firewall.policy import Policy, PolicyRule, compile_policy, policy_words
from firewall.policy_addresses import Intervals, Words, index_reaches
from firewall.policy_columns import rule_columns
from firewall.rule import rule_from_fields
from tests import oracle, random_rules
from tests.oracle import Packet
from tests.unit.image import policy_rule, set_bits, starts_of

INTERFACES = {"eth0": 2, "eth1": 3, "veth7": 9}
GLOBS = ("eth0", "eth*", "veth?", "wg0", "[ev]*")
HOOKS = ("ingress", "egress")
SEEDS = st.integers(0, 2**32)
PORTS = st.integers(0, 65535)


def compiled(rules: Sequence[dict[str, Any]]) -> Policy:
    """Every enabled rule as policy, whatever it asks. Handles are 1 on, slots ten times that."""
    enabled = [(number, each) for number, each in enumerate(rules, 1) if each.get("enabled", True)]
    made = [PolicyRule(rule_from_fields(each, f"r{n}", 0.0), n, 10 * n) for n, each in enabled]
    return compile_policy(made, INTERFACES)


def expected(rules: Sequence[dict[str, Any]], packet: Packet, hook: int, interface: str) -> int | None:
    """Handle of the winner as the oracle has it."""
    matching = [
        (oracle.rank(each), handle)
        for handle, each in enumerate(rules, 1)
        if each.get("mode") != "observe" and oracle.matches(each, packet, HOOKS[hook], interface)
    ]
    return min(matching)[1] if matching else None


def check(
    rules: Sequence[dict[str, Any]], policy: Policy, packet: Packet, interface: str = "eth0"
) -> int | None:
    """The handle that both name at ingress; asserted on both hooks."""
    for hook in (1, 0):
        found = policy_rule(policy, hook, packet, INTERFACES.get(interface, 77))
        handle = expected(rules, packet, hook, interface)
        assert (found and found[2]) == handle, (packet, interface, HOOKS[hook])
        if found is not None and handle is not None:
            assert found[1] == 10 * handle
    return handle


def packet(
    protocol: int, version: int = 4, source: str | int = "", destination: str | int = "", **l4: Any
) -> Packet:
    kind = IPv4Address if version == 4 else IPv6Address
    return Packet("default", version, kind(source or 1), kind(destination or 2), protocol, **l4)


# --- everything at once


@settings(max_examples=40)
@given(SEEDS)
def test_the_image_names_the_rule_that_the_oracle_names(seed: int) -> None:
    rng = random.Random(seed)
    rules = random_rules.random_rules(rng, rng.choice((0, 1, 5, 40, 150)), GLOBS)
    policy = compiled(rules)
    for _ in range(40):
        link = rng.choice(("ethernet", "ip"))
        parsed = oracle.parse(random_rules.random_frame(rng, link), link)
        if parsed.version is not None:
            check(rules, policy, parsed, rng.choice((*INTERFACES, "other")))


def test_random_packets_meet_rules_of_every_kind() -> None:
    """The test above tests little if its packets match nothing."""
    rng = random.Random(1)
    rules = random_rules.random_rules(rng, 150, GLOBS)
    policy = compiled(rules)
    parsed = [oracle.parse(random_rules.random_frame(rng)) for _ in range(400)]
    met = Counter(check(rules, policy, each) for each in parsed if each.version is not None)
    assert len(met) > 15


# --- an image of no rules


def test_no_rules_match_nothing() -> None:
    policy = compiled([])
    for image in policy.hooks:
        assert (image.best_rank, image.words, len(image.rules)) == (RANK_NONE, 0, 0)
        assert not image.interfaces
        assert not image.uses_interfaces
    assert policy.vector_count == 1 and not len(policy.vector(0))
    assert check([], policy, packet(6, ports=(1, 2), tcp_flags=frozenset())) is None


def test_vector_0_matches_nothing() -> None:
    rules = random_rules.random_rules(random.Random(3), 100, GLOBS)
    assert not compiled(rules).vector(0).any()


def test_values_with_the_same_rules_share_a_vector() -> None:
    """Vectors are a large part of the memory: neither many ports nor many prefixes of one rule need many."""
    ports = {"destination_ports": [str(port) for port in range(0, 4000, 2)]}
    alone = {"sources": [f"10.{at}.{at}.0/24" for at in range(250)], "protocols": "esp"}
    together = {"sources": alone["sources"], "protocols": "gre"}
    policy = compiled([ports, alone, together])
    assert policy.vector_count < 20 and policy.line_count(1) < 20


def test_every_number_of_the_image_is_a_vector() -> None:
    policy = compiled(random_rules.random_rules(random.Random(4), 100, GLOBS))
    for image in policy.hooks:
        numbers = [image.protocol.max(), image.port.max(), image.icmp.max(), image.any_interface]
        numbers += image.interfaces.values()
        numbers += [*image.anywhere4, *image.anywhere6]
        assert max(numbers) < policy.vector_count
        classes = [int(each.classes.max()) for each in (*image.intervals4, *image.intervals6)]
        assert max(classes) < 1 + sum(len(each) for _, each in policy.classes)
        assert all(len(policy.address_vector(each)) for each in classes)


def test_the_arrays_have_the_shapes_of_the_maps() -> None:
    image = compiled([]).hooks[0]
    assert image.protocol.shape == (C["PROTOCOL_ROWS"],)
    assert image.port.shape == (C["PORT_ROWS"], C["SIDE_COUNT"])
    assert image.icmp.shape == (C["ICMP_ROWS"],)


# --- the order of bits


def test_bits_of_a_word_stand_in_winning_order() -> None:
    rules = [
        {"priority": 5, "action": "allow"},
        {"priority": 5},
        {"priority": 4, "action": "allow"},
        {"priority": 5},
        {"priority": 0, "direction": "egress"},
    ]
    ingress, egress = compiled(rules).hooks
    assert len(ingress.rules) == 64 and not ingress.rules["handle"][4:].any()
    assert ingress.rules["handle"][:4].tolist() == [3, 2, 4, 1]
    assert ingress.rules["rank"][:4].tolist() == [11, 12, 12, 13]
    assert ingress.rules["slot"][:4].tolist() == [30, 20, 40, 10]
    assert ingress.rules["order"][:4].tolist() == [0, 1, 2, 3]
    assert egress.rules["handle"][:1].tolist() == [5]
    assert (ingress.best_rank, egress.best_rank) == (11, 2)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 129, 256])
def test_every_bit_of_every_word_is_found(count: int) -> None:
    rules = [{"destination_ports": number, "protocols": "udp"} for number in range(count)]
    policy = compiled(rules)
    assert policy.hooks[0].words == -(-count // 64)
    for number in {0, 62, 63, 64, 127, 128, count - 1} & set(range(count)):
        assert check(rules, policy, packet(17, ports=(0, number))) == number + 1
    assert check(rules, policy, packet(17, ports=(0, count))) is None


# --- ports

PORT_RULE = st.lists(st.tuples(PORTS, PORTS).map(sorted), min_size=1, max_size=4)


@settings(max_examples=40)
@given(st.lists(PORT_RULE, max_size=12), st.sampled_from(("source_ports", "destination_ports")), SEEDS)
def test_a_port_has_the_vector_of_the_rules_whose_ranges_hold_it(
    asked: list[list[list[int]]], side: str, seed: int
) -> None:
    rules = [{side: [f"{first}-{last}" for first, last in ranges]} for ranges in asked]
    policy = compiled(rules)
    rows, others = policy.hooks[0].port.T[:: 1 if side == "source_ports" else -1]
    edges = {edge + near for ranges in asked for pair in ranges for edge in pair for near in (-1, 0, 1)}
    rng = random.Random(seed)
    for port in {0, 65535, *(edges & set(range(65536))), *(rng.randrange(65536) for _ in range(10))}:
        bits = {bit for bit, ranges in enumerate(asked) if any(a <= port <= b for a, b in ranges)}
        assert handles(policy, rows[port]) == {bit + 1 for bit in bits}
    assert (others == others[0]).all() and handles(policy, others[0]) == set(range(1, len(asked) + 1))


def handles(policy: Policy, number: Any) -> set[int]:
    """Of the rules at ingress whose bits a vector has."""
    return handles_in(policy, policy.vector(int(number)))


def handles_in(policy: Policy, vector: Words) -> set[int]:
    bits = [64 * at + bit for at, word in enumerate(vector) for bit in set_bits(int(word))]
    return {int(policy.hooks[0].rules["handle"][bit]) for bit in bits}


@pytest.mark.parametrize(
    "ranges",
    [
        ["0-65535"],
        ["0-99", "100-65535"],
        ["0-65535", "5"],
        ["10-20", "20-30", "21"],
        ["0", "65535"],
        ["65535"],
        ["1-65534"],
    ],
)
def test_ranges_that_touch_or_overlap_are_their_union(ranges: list[str]) -> None:
    rules = [{"source_ports": ranges}, {"source_ports": "7"}]
    policy = compiled(rules)
    for port in (0, 1, 5, 7, 9, 10, 19, 20, 21, 30, 31, 99, 100, 65534, 65535):
        check(rules, policy, packet(17, ports=(port, 7)))


def test_ports_are_asked_of_their_own_side_only() -> None:
    rules = [{"source_ports": 1, "destination_ports": 2}]
    policy = compiled(rules)
    assert check(rules, policy, packet(17, ports=(1, 2))) == 1
    assert check(rules, policy, packet(17, ports=(2, 1))) is None


@pytest.mark.parametrize("protocol", [33, 132, 136])
def test_ports_without_protocols_mean_tcp_and_udp_only(protocol: int) -> None:
    rules = [{"source_ports": "0-65535"}, {"source_ports": 5, "protocols": [protocol]}]
    policy = compiled(rules)
    assert check(rules, policy, packet(protocol, ports=(5, 5))) == 2
    assert check(rules, policy, packet(protocol, ports=(6, 6))) is None


@pytest.mark.parametrize("protocol", [6, 17, 132])
def test_a_packet_whose_ports_were_not_read_matches_no_rule_that_asks_them(protocol: int) -> None:
    rules: list[dict[str, Any]] = [
        {"destination_ports": "0-65535", "protocols": [protocol]},
        {"tcp_flags": {"unset": ["urg"]}},
        {"protocols": [protocol]},
    ]
    assert check(rules, compiled(rules), packet(protocol, fragment=True)) == 3


# --- prefixes

NESTED = (
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/15",
    "10.0.0.0/16",
    "10.0.0.0/17",
    "10.0.0.7",
    "10.0.0.6/31",
    "11.0.0.0/8",
)
NESTED6 = (
    "::/0",
    "2000::/3",
    "2001::/31",
    "2001::/32",
    "2001::/33",
    "2001::/64",
    "2001::/95",
    "2001::/96",
    "2001::7",
)


@settings(max_examples=40)
@given(st.lists(st.sets(st.sampled_from(NESTED + NESTED6), max_size=3), max_size=8), SEEDS)
def test_nested_prefixes_are_flattened_to_all_that_cover_an_address(asked: list[set[str]], seed: int) -> None:
    rng = random.Random(seed)
    rules = [{"sources": sorted(each), "protocols": "esp"} for each in asked]
    policy = compiled(rules)
    addresses = [
        "10.0.0.7",
        "10.0.0.6",
        "10.0.0.8",
        "10.0.128.1",
        "10.1.0.1",
        "10.2.0.1",
        "11.9.9.9",
        "9.0.0.1",
    ]
    addresses += [
        "2001::7",
        "2001::8",
        "2001::1:0:0",
        "2001:0:0:1::",
        "2001:0:8000::",
        "2001:1::",
        "3000::",
        "fe80::1",
    ]
    for text in rng.sample(addresses, 8):
        address = ip_address(text)
        check(rules, policy, packet(50, address.version, source=int(address)))


def test_intervals_of_one_vector_are_one() -> None:
    rules = [{"sources": ["10.0.0.0/9", "10.128.0.0/9"], "protocols": "esp"}]
    image = compiled(rules).hooks[0]
    assert starts_of(image.intervals4[0]) == [0, 10 << 24, 11 << 24]
    assert starts_of(image.intervals4[1]) == starts_of(image.intervals6[0]) == [0]


def test_the_interval_count_is_that_of_the_fuller_family_over_both_hooks() -> None:
    four = [{"sources": f"10.0.0.{2 * n}", "protocols": 6 + n, "direction": "both"} for n in range(3)]
    six = [{"destinations": f"2001:db8::{2 * n + 2:x}", "protocols": 6} for n in range(5)]
    assert compiled([]).interval_count == 4
    assert compiled(four).interval_count == 2 * (7 + 1)
    assert compiled(four + six).interval_count == 2 * (7 + 1)
    assert compiled(six).interval_count == 11 + 3


def prefixes(version: int) -> st.SearchStrategy[Prefix]:
    """Crowded around few addresses, so that they nest, touch and reach the first and the last one."""
    bits = BITS[version]
    near = st.sampled_from((0, 10 << bits - 8, 2**bits - 1)).flatmap(
        lambda place: st.integers(0, 9).map(lambda by: place ^ by)
    )
    address = st.one_of(st.integers(0, 2**bits - 1), near)
    length = st.one_of(st.integers(0, bits), st.integers(bits - 4, bits), st.integers(14, 18))
    return st.builds(lambda a, n: Prefix(version, a >> bits - n << bits - n, n), address, length)


@pytest.mark.parametrize("version", [4, 6])
@settings(max_examples=120)
@given(st.data())
def test_an_address_has_the_vector_of_all_rules_with_a_prefix_around_it(version: int, data: Any) -> None:
    """Against trying every prefix; and every address finds its interval by the index as the programs do."""
    asked = data.draw(st.lists(st.lists(prefixes(version), min_size=1, max_size=6), min_size=1, max_size=10))
    rules = [{"sources": [str(each) for each in some], "protocols": "esp"} for some in asked]
    policy = compiled(rules)
    intervals = policy.hooks[0].intervals(version)[0]
    last = 2 ** BITS[version] - 1
    ends = {each.address for some in asked for each in some}
    ends |= {each.address + host_bits(version, each.length) for some in asked for each in some}
    addresses = {edge + by for edge in ends for by in (-1, 0, 1)} | {0, last, last // 3}
    starts = starts_of(intervals)
    assert starts[0] == 0 and starts == sorted(set(starts))
    for address in sorted(each for each in addresses if 0 <= each <= last):
        around = Prefix(version, address, BITS[version])
        wanted = {number for number, some in enumerate(asked, 1) if any(p.covers(around) for p in some)}
        number = int(intervals.classes[bisect_right(starts, address) - 1])
        assert handles_in(policy, policy.address_vector(number)) == wanted
        if version == 4:
            assert by_index(intervals, address) == number


def by_index(intervals: Intervals, address: int) -> int:
    """The search of bpf/policy.h."""
    buckets, blocks = index_reaches(intervals, 1000, 7000)
    first, count = int(buckets.firsts[address >> 16]), int(buckets.counts[address >> 16])
    if not count:
        place = first - 7000 + (address >> 8 & 255)
        first, count = int(blocks.firsts[place]), int(blocks.counts[place])
    at = first - 1000
    while count > 1:
        half = count // 2
        at += half if address >= intervals.starts[at + half] else 0
        count -= half
    return int(intervals.classes[at])


@pytest.mark.parametrize("version", [4, 6])
def test_family_narrows_a_rule_with_or_without_addresses(version: int) -> None:
    rules: list[dict[str, Any]] = [
        {"family": f"ipv{10 - version}", "protocols": "esp"},
        {"family": f"ipv{10 - version}", "sources": ["0.0.0.0/0", "::/0"], "protocols": "esp"},
        {"family": f"ipv{version}", "sources": ["0.0.0.0/0", "::/0"], "protocols": "esp"},
    ]
    policy = compiled(rules)
    assert check(rules, policy, packet(50, version)) == 3
    assert check(rules, policy, packet(50, 10 - version)) == 1


def test_sources_of_one_family_and_destinations_of_the_other_match_nothing() -> None:
    rules = [{"sources": "0.0.0.0/0", "destinations": "::/0"}]
    policy = compiled(rules)
    assert check(rules, policy, packet(6)) is None
    assert check(rules, policy, packet(6, 6)) is None


# --- protocols, flags, ICMP


@settings(max_examples=25)
@given(SEEDS)
def test_every_protocol_row_has_the_rules_of_its_packets(seed: int) -> None:
    rng = random.Random(seed)
    rules = [random_rules.random_rule(rng, ()) for _ in range(25)]
    policy = compiled(rules)
    for protocol in (*oracle.PROTOCOLS.values(), 0, 200, 255):
        check(rules, policy, packet(protocol))
        if protocol in (17, 33, 132, 136):
            check(rules, policy, packet(protocol, ports=(22, 80)))
    for flags in range(256):
        names = frozenset(name for name, bit in oracle.TCP_FLAGS.items() if flags & bit)
        check(rules, policy, packet(6, ports=(22, 80), tcp_flags=names))


@settings(max_examples=25)
@given(SEEDS)
def test_every_icmp_row_has_the_rules_of_its_packets(seed: int) -> None:
    rng = random.Random(seed)
    rules: list[dict[str, Any]] = [
        *({"action": rng.choice(("drop", "allow"))} | random_rules.icmp_types(rng) for _ in range(6)),
        {"protocols": ["icmp"], "priority": 1001},
        {"priority": 1002},
    ]
    policy = compiled(rules)
    kinds = {0, 3, 8, 128, 135, 255, rng.randrange(256)}
    for version, protocol, kind, code in (
        (v, p, k, c) for v in (4, 6) for p in (1, 58) for k in kinds for c in (0, 1, 3, 255)
    ):
        check(rules, policy, packet(protocol, version, icmp=(kind, code)))
    check(rules, policy, packet(1))


def test_an_icmp_type_is_asked_of_both_icmps_whatever_the_ip_version() -> None:
    rules = [{"icmp_types": "8"}]
    policy = compiled(rules)
    for version in (4, 6):
        for protocol in (1, 58):
            assert check(rules, policy, packet(protocol, version, icmp=(8, 0))) == 1
            assert check(rules, policy, packet(protocol, version, icmp=(9, 0))) is None


def test_flags_are_asked_of_tcp_only_among_other_protocols() -> None:
    rules = [{"tcp_flags": {"set": ["syn"]}, "protocols": ["tcp", "udp"]}]
    policy = compiled(rules)
    assert check(rules, policy, packet(6, ports=(1, 2), tcp_flags=frozenset({"syn", "ack"}))) == 1
    assert check(rules, policy, packet(6, ports=(1, 2), tcp_flags=frozenset({"ack"}))) is None
    assert check(rules, policy, packet(17, ports=(1, 2))) is None


# --- interfaces


@pytest.mark.parametrize(
    ("globs", "fitting"),
    [
        (["eth0"], {"eth0"}),
        (["eth*"], {"eth0", "eth1"}),
        (["eth0", "veth?"], {"eth0", "veth7"}),
        (["*"], {"eth0", "eth1", "veth7"}),
        (["ETH0"], set()),
        (["wg0"], set()),
    ],
)
def test_a_rule_with_interfaces_matches_on_those_that_fit(globs: list[str], fitting: set[str]) -> None:
    rules = [{"interfaces": globs, "protocols": "esp"}, {"protocols": "esp", "priority": 2000}]
    policy = compiled(rules)
    for name in (*INTERFACES, "other"):
        found = policy_rule(policy, 0, packet(50), INTERFACES.get(name, 77))
        assert found and found[2] == (1 if name in fitting else 2)
    assert policy.hooks[0].interfaces.keys() == {INTERFACES[name] for name in fitting}


def test_interfaces_are_looked_up_only_where_a_rule_of_the_hook_names_one() -> None:
    ingress, egress = compiled([{"interfaces": "eth0"}, {"direction": "egress"}]).hooks
    assert ingress.uses_interfaces
    assert not egress.uses_interfaces and not egress.interfaces


# --- what the image must not depend on


@settings(max_examples=15)
@given(SEEDS)
def test_the_order_in_which_rules_are_given_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    made = [
        PolicyRule(rule_from_fields(each, "r", 0.0), handle, handle)
        for handle, each in enumerate(random_rules.random_rules(rng, 20, GLOBS), 1)
    ]
    shuffled = rng.sample(made, len(made))
    one, other = compile_policy(made, INTERFACES), compile_policy(shuffled, INTERFACES)
    assert one.vector_count == other.vector_count
    for (first, rows), (same, others) in zip(one.pieces, other.pieces, strict=True):
        assert first == same and np.array_equal(rows, others)
    for (first, some), (same, others) in zip(one.classes, other.classes, strict=True):
        assert first == same and np.array_equal(some.vectors, others.vectors)
    for hook, second in zip(one.hooks, other.hooks, strict=True):
        assert np.array_equal(hook.rules, second.rules) and np.array_equal(hook.port, second.port)
        for version in (4, 6):
            for some, others in zip(hook.intervals(version), second.intervals(version), strict=True):
                assert starts_of(some) == starts_of(others)
                assert np.array_equal(some.classes, others.classes)
        assert np.array_equal(hook.protocol, second.protocol) and np.array_equal(hook.icmp, second.icmp)


# --- rules that observe


@settings(max_examples=25)
@given(SEEDS)
def test_rules_that_observe_stand_in_words_behind_those_that_enforce(seed: int) -> None:
    rng = random.Random(seed)
    rules = [
        {**random_rules.random_rule(rng, GLOBS), "mode": rng.choice(("enforce", "observe"))}
        for _ in range(rng.choice((1, 10, 150)))
    ]
    policy = compiled(rules)
    for hook, image in enumerate(policy.hooks):
        mine = {
            handle: each
            for handle, each in enumerate(rules, 1)
            if each.get("enabled", True) and each.get("direction", "ingress") in (HOOKS[hook], "both")
        }
        kinds = {"enforce": set(image.rules["handle"][: image.enforcing * 64].tolist()) - {0}}
        kinds["observe"] = set(image.rules["handle"][image.enforcing * 64 :].tolist()) - {0}
        for kind, found in kinds.items():
            assert found == {handle for handle, each in mine.items() if each["mode"] == kind}
        assert image.observes == bool(kinds["observe"])
        ranks = [oracle.rank(mine[handle]) for handle in kinds["enforce"]]
        best = min(ranks, default=None)
        assert image.best_rank == (RANK_NONE if best is None else C["RANK_FIRST"] + best[0] * 2 + best[1])


@pytest.mark.parametrize(
    ("rules", "words"),
    [(1, 2), (64, 2), (65, 3), (4032, 64), (4033, 64), (4096, 64), (4097, 66), (16384, 256)],
)
def test_vectors_have_a_word_more_for_rules_that_observe_where_it_is_free(rules: int, words: int) -> None:
    assert policy_words(rules) == words
    full = -(-rules // 64)
    assert -(-words // 64) == -(-full // 64)  # words of the summary


def test_sets_of_rules_are_told_apart_where_their_sums_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """At first all random numbers are the same: a prefix that two rules name is like every other such prefix."""
    random_numbers = policy_addresses._random_numbers
    tried = []

    def unlucky(size: int, attempt: int) -> Words:
        tried.append(attempt)
        return np.ones(size, np.uint64) if attempt < 2 else random_numbers(size, attempt)

    monkeypatch.setattr(policy_addresses, "_random_numbers", unlucky)
    prefixes = [["192.0.2.0/25", "198.51.100.0/24"], ["192.0.2.0/25", "203.0.113.0/24"], ["198.51.100.0/24"]]
    shared: dict[str, Any] = {"protocols": ["udp"], "direction": "both"}
    rules = [{"sources": each, "priority": 9 - at, **shared} for at, each in enumerate(prefixes)]
    policy = compiled(rules)
    assert tried == [0, 1, 2] * 2  # for each hook
    for source, handle in (("192.0.2.7", 2), ("198.51.100.7", 3), ("203.0.113.7", 2), ("192.0.2.200", None)):
        packet = Packet("default", 4, ip_address(source), ip_address("192.0.2.1"), protocol=17, ports=(5, 6))
        assert check(rules, policy, packet) == handle


def neighbours(*rules: dict[str, Any]) -> list[int]:
    """Handles in the order in which rules share words."""
    made = [PolicyRule(rule_from_fields(each, f"r{n}", 0.0), n, n) for n, each in enumerate(rules, 1)]
    return rule_columns(made).handles.tolist()


def test_rules_of_a_protocol_and_of_the_address_of_which_they_say_more_are_neighbours() -> None:
    assert neighbours(
        {"action": "drop", "protocols": ["udp"], "sources": ["10.0.0.1"], "destinations": ["10.9.0.0/16"]},
        {"action": "drop", "protocols": ["tcp"], "sources": ["10.0.0.0/16"], "destinations": ["10.7.0.1"]},
        {"action": "drop", "protocols": ["tcp"], "sources": ["10.0.0.1"]},
        {"action": "drop", "protocols": ["tcp"], "destinations": ["10.7.0.0/24"]},
        {"action": "drop", "protocols": ["tcp"], "sources": ["10.0.0.2"], "destinations": ["10.7.0.1"]},
        {"action": "drop", "protocols": ["tcp"], "sources": ["10.0.0.0/24"], "destinations": ["10.9.0.0/28"]},
    ) == [6, 3, 5, 1, 4, 2]


def test_rules_that_name_a_set_are_neighbours_by_it() -> None:
    named = {"action": "drop", "protocols": ["tcp"], "sources": ["@bad"]}
    assert neighbours(
        named | {"destinations": ["10.0.0.1"]},
        {"action": "drop", "protocols": ["tcp"], "destinations": ["10.0.0.1"]},
        named | {"destination_ports": [22]},
    ) == [3, 1, 2]


def test_any_protocol_and_several_are_not_among_those_of_one() -> None:
    asked = [
        {"protocols": ["udp"]},
        {},
        {"protocols": ["tcp"]},
        {"protocols": ["tcp", "udp"]},
        {"protocols": ["tcp"]},
    ]
    address = {"action": "drop", "sources": ["10.0.0.0/24"], "destinations": ["10.1.0.0/24"]}
    assert neighbours(*(address | each for each in asked)) == [3, 5, 1, 4, 2]
