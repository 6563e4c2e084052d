"""Rules change one by one and together while packets flow: each packet meets the rules before or after a change, whole.

Other threads judge frames without a pause on both hooks. The rules go round between sets that say the same of these
frames for different reasons; every mixture of two sets, and every moment without one of the rules, would let a frame
through or hold one back. SWAPS says how many changes (`make swap`: thousands).
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from firewall.kernel import address_table, bpf
from tests.datapath.contents import assert_exact
from tests.datapath.frames import tcp
from tests.datapath.loaded import Loaded
from tests.netns.topology import wait_until

Rule = dict[str, Any]
HOOKS = ("ingress", "egress")
SWAPS = int(os.environ.get("SWAPS", "100"))
DROPPED_HOSTS, PASSING_HOST = ("10.0.0.1", "10.0.0.2"), "10.0.0.3"
FRAMES = [(tcp(host, dport=22), "drop") for host in DROPPED_HOSTS] + [(tcp(PASSING_HOST, dport=22), "pass")]
REPEAT = 500


@contextmanager
def flooded(firewall: Loaded) -> Iterator[None]:
    """Meanwhile each of FRAMES is judged over and over; at the end, every single time as it says there."""
    for frame, verdict in FRAMES:
        assert {firewall.judge(frame, hook).verdict for hook in HOOKS} == {verdict}
    firewall.counted_since_last()
    is_over = threading.Event()
    expected: Counter[tuple[str, str]] = Counter()

    def flood(hook: str, program: int) -> None:
        while not is_over.is_set():
            for frame, verdict in FRAMES:
                bpf.test_run(program, frame, repeat=REPEAT)
                expected[hook, verdict] += REPEAT

    flooding = [threading.Thread(target=flood, args=(hook, firewall.program(hook))) for hook in HOOKS]
    for thread in flooding:
        thread.start()
    try:
        wait_until(lambda: len(expected) == 4, "packets flow on both hooks")
        yield
        wait_until(lambda: min(expected.values()) >= 2 * REPEAT, "more than a round of packets")
    finally:
        is_over.set()
        for thread in flooding:
            thread.join()
    seen: Counter[tuple[str, str]] = Counter()
    for (hook, verdict, _), (packets, _) in firewall.counted_since_last().items():
        seen[hook, verdict] += packets
    assert seen == expected


def both(*rules: Rule) -> list[Rule]:
    return [{**rule, "direction": "both"} for rule in rules]


# By an address rule the first, by a policy rule the second; the third passes by an allow over a drop of its network.
BASE = both(
    {"id": "host", "sources": [DROPPED_HOSTS[0]], "priority": 100},
    {"id": "port", "sources": [DROPPED_HOSTS[1]], "destination_ports": [22], "priority": 100},
    {"id": "net", "sources": ["10.0.0.0/30"], "destination_ports": ["20-30"], "priority": 900},
    {"id": "exempt", "sources": [PASSING_HOST], "action": "allow", "priority": 100},
)


def neighbour(rng: random.Random, kind: str, name: str) -> Rule:
    """A rule beside those of BASE: worse than they are, or of others. It shares prefixes, words and ports with them."""
    rule: Rule = {
        "id": name,
        "direction": rng.choice(("ingress", "egress", "both")),
        "priority": rng.randint(200, 800),
    }
    if kind == "policy":
        rule |= {"destination_ports": [rng.choice((22, 23, 443))], "protocols": ["tcp"]}
    host = rng.choice(
        (*DROPPED_HOSTS, PASSING_HOST, "10.0.0.0/30", f"10.0.{rng.randint(1, 9)}.{rng.randint(0, 255)}")
    )
    return {**rule, "sources": [host], "action": rng.choice(("drop", "allow"))}


@pytest.mark.parametrize("kinds", [("address",), ("policy",), ("address", "policy")])
def test_single_adds_deletes_and_replaces_show_no_packet_a_mixture(
    firewall: Loaded, kinds: Sequence[str]
) -> None:
    rng = random.Random(repr(kinds))
    firewall.rules(*BASE)
    present: list[str] = []
    with flooded(firewall):
        for turn in range(SWAPS):
            if present and rng.random() < 0.4:
                firewall.delete(present.pop(rng.randrange(len(present))))
            elif present and rng.random() < 0.5:
                firewall.put(neighbour(rng, rng.choice(kinds), rng.choice(present)))
            else:
                present.append(f"n{turn}")
                firewall.add(**neighbour(rng, rng.choice(kinds), present[-1]))
    assert_exact(firewall)


def batch_of_both(firewall: Loaded, turn: int) -> None:
    """The address rule and the policy rule change places, and both are other rules each time."""
    one, other = DROPPED_HOSTS if turn % 2 else DROPPED_HOSTS[::-1]
    priority = 50 + turn % 7
    adds = both(
        {"id": f"host-{turn}", "sources": [one], "priority": priority},
        {"id": f"host-allow-{turn}", "sources": [other], "action": "allow", "priority": priority + 1},
        {"id": f"port-{turn}", "sources": [other], "destination_ports": [22], "priority": priority},
        {
            "id": f"port-allow-{turn}",
            "sources": [one],
            "destination_ports": [22],
            "action": "allow",
            "priority": priority + 1,
        },
    )
    names = ("host", "host-allow", "port", "port-allow")
    firewall.batch(adds, [f"{name}-{turn - 1}" for name in names] if turn else [])


def put_from_structure_to_structure(firewall: Loaded, turn: int) -> None:
    """A rule goes from the address tables to the policy and back, under the same id and with its counters."""
    (rule,) = both({"id": "host", "sources": [DROPPED_HOSTS[0]], "priority": 100})
    firewall.put(rule if turn % 2 else {**rule, "protocols": ["tcp"]})


def put_of_other_prefixes(firewall: Loaded, turn: int) -> None:
    """An address rule exchanges all of its prefixes but keeps what it says of the host."""
    prefixes = [DROPPED_HOSTS[0], "2001:db8::1"] if turn % 2 else ["10.0.0.0/31", "2001:db8::/64"]
    firewall.put(*both({"id": "host", "sources": prefixes, "priority": 100}))


@pytest.fixture(params=["front", "rows"])
def somewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """IPv4 entries stand in the front, or as those of a large table."""
    if request.param == "rows":
        monkeypatch.setattr(address_table, "FRONT_ENTRIES", 0)
        monkeypatch.setattr(address_table, "FEWEST_BUCKETS", 4)
    loaded: Loaded = request.getfixturevalue("fresh" if request.param == "rows" else "firewall")
    return loaded


@pytest.mark.parametrize("change", [batch_of_both, put_from_structure_to_structure, put_of_other_prefixes])
def test_a_swap_by_one_request_shows_no_packet_a_mixture(
    somewhere: Loaded, change: Callable[[Loaded, int], None]
) -> None:
    somewhere.rules(*BASE)
    with flooded(somewhere):
        for turn in range(SWAPS):
            change(somewhere, turn)
    assert_exact(somewhere)


def test_growth_of_address_tables_under_traffic_shows_no_packet_a_mixture(fresh: Loaded) -> None:
    """The programs stay, so that these are the ones that hooks run. (Larger policy tables come with programs of their
    own, put on the hooks at one moment.)"""
    fresh.rules(*BASE)
    maps = fresh.kernel._set.maps.maps
    had, rows = maps["address6"].info.max_entries, fresh.kernel._set.maps.live_rows
    mask = int(fresh.kernel._set.maps.control["filter_mask"])
    many4 = [f"100.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(40_000)]
    many6 = [f"2001:db8:1::{n:x}" for n in range(20_000)]
    with flooded(fresh):
        for at in range(0, len(many4), 5000):
            fresh.add(id=f"four-{at}", sources=many4[at : at + 5000], direction="both")
            fresh.add(id=f"six-{at}", sources=many6[at // 2 : at // 2 + 2500])
    assert maps["address6"].info.max_entries > had and fresh.kernel._set.maps.live_rows != rows
    assert int(fresh.kernel._set.maps.control["filter_mask"]) > mask
    assert_exact(fresh)
