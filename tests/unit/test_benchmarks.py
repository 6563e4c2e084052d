"""The benchmarks' own parts: lists, rule sets, probe counting, and the arithmetic of the report."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from scapy.layers import inet
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from benchmarks import address_lists, policies, report
from benchmarks.frames import TCP, UDP, ipv4_frames, ipv6_frames
from benchmarks.http_client import encoded
from benchmarks.measure import Answers, Goal, Row, percentile
from benchmarks.policies import ANY_PROTOCOL, SHAPES, Packets, PolicySet
from firewall.presence import marks, set_marks
from firewall.rule import rule_from_fields

SIZE = 2000


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(1)


def test_random_hosts_are_distinct_and_not_the_benchmarks_own(random: np.random.Generator) -> None:
    hosts = address_lists.random_hosts(random, SIZE)
    assert len(np.unique(hosts)) == SIZE
    own = [ip_network("127.0.0.0/8"), ip_network("198.18.0.0/15"), ip_network("192.0.2.0/24")]
    assert not any(
        int(net.network_address) <= host <= int(net.broadcast_address) for host in hosts for net in own
    )


def test_hosts_without_are_not_listed(random: np.random.Generator) -> None:
    listed = address_lists.random_hosts(random, SIZE)
    assert not np.isin(address_lists.hosts_without(random, SIZE, listed), listed).any()


def test_text_and_columns_say_the_same_address() -> None:
    hosts = np.array([0x01020304, 0xDFFF0001], np.uint32)
    assert address_lists.text(hosts) == ["1.2.3.4", "223.255.0.1"]
    assert address_lists.host_columns(hosts).addresses.tolist() == [[1, 2, 3, 4], [223, 255, 0, 1]]


def test_a_mixed_list_has_the_asked_size_distinct_masked_and_nested(random: np.random.Generator) -> None:
    mixed = address_lists.mixed_list(random, SIZE)
    four, six = mixed.columns()
    assert len(four) + len(six) == SIZE
    assert len(six) == int(SIZE * address_lists.SHARE_OF_IPV6)
    assert not (mixed.networks4 & ~address_lists.masks4(mixed.lengths4)).any()
    assert not (mixed.networks6 & ~address_lists.masks6(mixed.lengths6)).any()
    assert len(set(zip(mixed.networks4.tolist(), mixed.lengths4.tolist(), strict=True))) == len(four)
    networks = {(int(net), int(length)) for net, length in zip(mixed.networks4, mixed.lengths4, strict=True)}
    inside = [
        net
        for net, length in networks
        if any((net >> 32 - each << 32 - each, each) in networks for each in range(8, length))
    ]
    assert inside, "no prefix lies in another"


def test_hosts_in_a_mixed_list_are_covered_by_it(random: np.random.Generator) -> None:
    mixed = address_lists.mixed_list(random, 300)
    hosts = mixed.hosts_in4(random, 100)
    masks = address_lists.masks4(mixed.lengths4)
    assert all(((host & masks) == mixed.networks4).any() for host in hosts)


def test_probes_are_counted_as_the_filter_allows_them() -> None:
    """A probe for every prefix of the source that is listed, and none for others: so few bits do not deceive."""
    keys = [("10.1.0.0", 24), ("10.1.0.3", 32), ("10.2.0.0", 16)]
    prefixes = np.zeros(len(keys), address_lists.PREFIX[4])
    prefixes["length"] = [length for _, length in keys]
    prefixes["address"] = np.frombuffer(b"".join(ip_address(text).packed for text, _ in keys), "<u4")
    mask = 511
    words = np.zeros(640, np.uint64)
    set_marks(words, marks(4, prefixes, mask))
    lengths = 1 << 16 | 1 << 24 | 1 << 32
    sources = address_lists.rows4(np.array([0x0A010003, 0x0A010004, 0x0A020000, 0x0A030000], np.uint32))
    assert address_lists.probes(words, mask, 4, lengths, sources).tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [1, 64, 500])
def test_policy_rules_are_valid_and_all_go_to_the_policy(
    name: str, size: int, random: np.random.Generator
) -> None:
    policy = policies.policy_set(random, SHAPES[name], size)
    rules = [rule_from_fields(fields, str(fields["id"]), 0.0) for fields in policy.rule_fields()]
    assert len(rules) == size
    assert not any(rule.is_addresses_only for rule in rules)
    assert [rule.rank for rule in rules] == sorted({rule.rank for rule in rules})


@pytest.mark.parametrize("name", SHAPES)
def test_friendly_packets_match_and_adversarial_ones_miss(name: str, random: np.random.Generator) -> None:
    policy = policies.policy_set(random, SHAPES[name], 500)
    friendly = policies.friendly(random, policy, 200)
    assert (policies.first_match(policy, friendly) < len(policy)).all()
    for matches_last, winner in ((True, len(policy) - 1), (False, len(policy))):
        packets = policies.adversarial(random, policy, 200, matches_last)
        assert len(packets) == 200
        assert (policies.first_match(policy, packets) == winner).all()


def one_rule(**columns: object) -> PolicySet:
    values: dict[str, object] = {
        "sources": [0x0A000000], "source_lengths": [8], "destinations": [0], "destination_lengths": [0],
        "protocols": [TCP], "source_ports": [[0, 65535]], "destination_ports": [[80, 90]],
    }  # fmt: skip
    arrays = {name: np.array(value, np.int64) for name, value in {**values, **columns}.items()}
    return PolicySet(**arrays, drops=np.array([True]))


@pytest.mark.parametrize(
    ("source", "protocol", "port", "winner"),
    [
        (0x0A010203, TCP, 80, 0),
        (0x0A010203, TCP, 90, 0),
        (0x0A010203, TCP, 91, 1),
        (0x0A010203, UDP, 80, 1),
        (0x0B010203, TCP, 80, 1),
    ],
)
def test_the_naive_judge_asks_every_field(source: int, protocol: int, port: int, winner: int) -> None:
    packets = Packets(*(np.array([value]) for value in (source, 1, protocol, 1000, port)))
    assert policies.first_match(one_rule(), packets).tolist() == [winner]


def test_a_rule_about_ports_misses_protocols_without_them() -> None:
    packets = Packets(*(np.array([value]) for value in (0x0A010203, 1, policies.ICMP, 0, 80)))
    assert policies.first_match(one_rule(protocols=[ANY_PROTOCOL]), packets).tolist() == [1]


def test_frames_are_what_scapy_reads_in_them() -> None:
    frame = bytes(ipv4_frames(np.array([0x01020304], np.uint32), 0xC6120001, TCP, 1234, 80)[0])
    read = Ether(frame)
    assert (read[inet.IP].src, read[inet.IP].dst) == ("1.2.3.4", "198.18.0.1")
    assert (read[inet.TCP].sport, read[inet.TCP].dport, str(read[inet.TCP].flags)) == (1234, 80, "S")
    again = read[inet.IP].copy()
    del again.chksum
    assert inet.IP(bytes(again)).chksum == read[inet.IP].chksum
    assert Ether(bytes(ipv4_frames(np.array([1], np.uint32))[0]))[inet.UDP].len == len(frame) - 34
    six = Ether(bytes(ipv6_frames(np.arange(16, dtype=np.uint8).reshape(1, 16))[0]))
    assert six[IPv6].plen == len(frame) - 54 and six[inet.UDP].dport == 9


def test_best_is_the_lowest_cost_or_the_highest_rate() -> None:
    cost = Row("q", "n", "ns", [30.0, 20.0, 25.0], baseline=15.0)
    assert (cost.best, cost.net, cost.median) == (20.0, 5.0, 25.0)
    assert Row("q", "n", "Mpps", [1.0, 3.0, 2.0], "higher").best == 3.0


@pytest.mark.parametrize(
    ("values", "unstable"), [([100.0, 110.0], False), ([100.0, 130.0], True), ([5.0], False)]
)
def test_a_row_is_unstable_when_its_rounds_differ_much(values: list[float], unstable: bool) -> None:
    assert Row("q", "n", "ns", values).is_unstable == unstable


def test_goals_have_a_direction() -> None:
    assert Goal("g", 0.7, 0.7, "×").is_met
    assert not Goal("g", 0.71, 0.7, "×").is_met
    assert Goal("g", 3.2, 3.0, "×", at_most=False).is_met
    assert not Goal("g", 2.9, 3.0, "×", at_most=False).is_met


def test_a_goal_is_as_stable_as_the_rows_it_rests_on() -> None:
    stable, unstable = Row("q", "a", "ns", [100.0, 101.0]), Row("q", "b", "ns", [100.0, 200.0])
    assert not Goal("g", 1, 2, "ns", rests_on=(stable,)).is_unstable
    assert Goal("g", 1, 2, "ns", rests_on=(stable, unstable)).is_unstable


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_are_by_nearest_rank(share: float, expected: int) -> None:
    assert percentile([float(each) for each in range(100, 0, -1)], share) == expected


def test_ratios_are_to_the_reference_less_the_harness() -> None:
    answers = Answers(
        [
            Row("packet cost", "1 address, miss", "ns", [30.0], baseline=20.0),
            Row("packet cost", "xdp-filter, 1 address, miss", "ns", [60.0], baseline=20.0),
            Row("throughput", "bare XDP_PASS, hit", "Mpps", [4.0], "higher"),
            Row("throughput", "ebpf-fw, hit", "Mpps", [3.0], "higher"),
        ]
    )
    assert [report.ratio_of(row, answers) for row in answers.rows] == [0.25, 1.0, 1.0, 0.75]


def test_the_json_carries_rows_goals_and_where() -> None:
    answers = Answers([Row("bulk", "n", "s", [1.0, 2.0])], [Goal("g", 1, 2, "s")], {"fw_xdp_ethernet": 7})
    content = json.loads(report.as_json(answers, {"kernel": "6.1"}))
    assert content["rows"][0]["best"] == 1.0 and content["rows"][0]["unstable"]
    assert content["goals"] == [
        {"name": "g", "measured": 1, "limit": 2, "unit": "s", "at_most": True, "met": True, "unstable": False}
    ]
    assert content["verified_instructions"] == {"fw_xdp_ethernet": 7}


def test_requests_tell_their_length() -> None:
    assert encoded("POST", "/v1/rules", b"{}").endswith(
        b"Content-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
    )


def test_markdown_has_every_goal_and_row() -> None:
    row = Row("bulk", "import", "s", [1.0, 1.5])
    goal = Goal("import", 1.0, 0.5, "s", rests_on=(row,))
    where = {
        "measured_at": "now",
        "commit": "abc",
        "cpu": "some",
        "cores": 2,
        "kernel": "6.1",
        "python": "3.11",
    }
    text = report.as_markdown(
        Answers([row], [goal], {"fw_xdp_ip": 12345}), {**where, "peers": {"ipset": "ipset v7"}}
    )
    assert "| import | 1.00 s | ≤ 0.50 s | not met (unstable) |" in text
    assert "| bulk | import | 1.00 s | 1.25 | 40% unstable |" in text
    assert "commit abc" in text and "ipset v7" in text and "fw_xdp_ip 12,345" in text
