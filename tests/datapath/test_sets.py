"""Sets in the kernel's maps: packets are judged by what is in them, at every moment by all of the old or of the new.

`_FEW` 0 lets a few entries go the way of a million.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from firewall.address import BITS, format_address, parse_prefix
from firewall.address_index import decoded
from firewall.address_list import parse_list
from firewall.caution import Caution
from firewall.datapath import Key
from firewall.errors import KernelRefused
from firewall.set_entries import SetEntry, entry_columns
from tests import oracle
from tests.datapath.contents import assert_exact, stored_sets, visible_entries
from tests.datapath.frames import tcp
from tests.datapath.loaded import Judged, Loaded
from tests.datapath.sabotage import Sabotage
from tests.datapath.sets import NAMES, columns, forget, put, random_content
from tests.datapath.test_changes import state, stored
from tests.datapath.test_property import World, random_arrivals
from tests.datapath.test_swaps import BASE, DROPPED_HOSTS, SWAPS, both, flooded
from tests.random_rules import random_rules
from tests.unit.host import wait_for


@pytest.fixture(autouse=True)
def no_sets(firewall: Loaded) -> Iterator[None]:
    yield
    forget(firewall)


def go_by_the_million(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.addresses._FEW", 0)
    monkeypatch.setattr("firewall.kernel.datapath._FEW_LOOKUPS", 0)


@pytest.fixture(params=[True, False], ids=["by the million", "one by one"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        go_by_the_million(monkeypatch)


@pytest.mark.parametrize("seed", range(3))
def test_property_programs_and_oracle_agree_about_sets(firewall: Loaded, few: None, seed: int) -> None:
    rng, world = random.Random(seed), World({}, "pretended-interface-0")
    put(firewall, dict.fromkeys(NAMES, ()))
    for _ in range(3):
        rules = random_rules(rng, rng.choice((2, 5, 12, 30)), sets=NAMES)
        firewall.rules(*rules)
        for _ in range(2):
            content = random_content(rng)
            put(firewall, content)
            assert_exact(firewall)
            for arrival in random_arrivals(rng, 20):
                expanded = [oracle.with_entries(rule, content) for rule in rules]
                expected = world.judge(expanded, arrival)
                found = firewall.judge(arrival.frame, arrival.hook, arrival.link)
                assert found == (expected.verdict, expected.reason), (rules, content, arrival)


CONTENT = {
    "a": ["10.0.0.1", "10.0.0.2", "2001:db8::1", "172.16.0.0/12"],
    "b": ["10.0.0.2", "10.0.0.3"],
    "c": (),
}
RULES: list[dict[str, Any]] = [
    {"id": "first", "sources": ["@a"], "priority": 10, "direction": "both"},
    {"id": "second", "sources": ["@a", "@b"], "priority": 20, "action": "allow"},
    {"id": "host", "sources": ["10.0.0.2"], "priority": 5, "action": "allow"},
    {"id": "port", "sources": ["@b"], "destination_ports": [22], "priority": 1},
]
SOURCES = (
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "172.16.0.1",
    "2001:db8::1",
    "2001:db8::2",
    "192.0.2.1",
)
FRAMES = [tcp(source, dport=port) for source in SOURCES for port in (22, 80)]

CHANGES: dict[str, Callable[[Loaded], object]] = {
    "entries come": lambda firewall: firewall.enforcer.add_entries("a", columns(["10.0.0.4", "2001:db8::2"])),
    "entries go": lambda firewall: firewall.enforcer.delete_entries("a", columns(["10.0.0.1", "10.0.0.2"])),
    "all are replaced": lambda firewall: put(firewall, {"a": ["10.0.0.3", "10.0.0.4"]}),
    "the rule that wins goes": lambda firewall: firewall.delete("first"),
    "a better rule comes": lambda firewall: firewall.add(
        id="best", sources=["@a"], priority=1, action="allow"
    ),
    "the rule gets another action": lambda firewall: firewall.edit("first", action="allow"),
    "the rule names another set": lambda firewall: firewall.edit("first", sources=["@b"]),
    "the rule gets ports": lambda firewall: firewall.edit("first", destination_ports=[80]),
    "the rule is disabled": lambda firewall: firewall.edit("first", enabled=False),
}


def expiring(firewall: Loaded, name: str, prefixes: Iterable[str]) -> None:
    """Entries that are there get a time that comes at once."""
    until = time.time() + 0.02
    firewall.enforcer.add_entries(
        name, entry_columns(SetEntry(parse_prefix(each), until) for each in prefixes)
    )
    wait_for(lambda: time.time() > until)


def expire(firewall: Loaded, parts: int = 1000) -> None:
    """What the watching thread would do, as often as it needs, or so many times."""
    enforcer = firewall.enforcer
    while parts and enforcer._set_store.next_expiry() is not None:
        with enforcer._lock:
            enforcer._expire_entries()
        parts -= 1


def text_of(key: Key) -> str:
    return format_address(key.version, key.address) + (
        "" if key.length == BITS[key.version] else f"/{key.length}"
    )


def expires(firewall: Loaded) -> None:
    expiring(firewall, "a", EXPIRE)
    expire(firewall)


EXPIRE = ("10.0.0.1", "10.0.0.2", "2001:db8::1")
CHANGES["entries expire"] = expires

# One of each kind: what comes, goes, changes its rank, its rule, its structure.
REFUSED = (
    "entries go",
    "all are replaced",
    "the rule gets another action",
    "a better rule comes",
    "the rule gets ports",
)


def verdicts(firewall: Loaded) -> list[Judged]:
    return [firewall.judge(frame, hook) for hook in ("ingress", "egress") for frame in FRAMES]


def expected_verdicts(firewall: Loaded) -> list[Judged]:
    enforcer = firewall.enforcer
    sets = {
        each.name: [str(one.prefix) for one in enforcer.all_entries(each.name)] for each in enforcer.sets()
    }
    judgements = (
        oracle.judge(stored(firewall), frame, direction=hook, interface="pretended-interface-0", sets=sets)
        for hook in ("ingress", "egress")
        for frame in FRAMES
    )
    return [Judged(each.verdict, each.reason) for each in judgements]


@pytest.mark.parametrize("name", REFUSED)
def test_a_change_that_the_kernel_refuses_at_any_step_leaves_sets_and_rules_as_they_were(
    firewall: Loaded, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    go_by_the_million(monkeypatch)
    sabotage = Sabotage(monkeypatch)
    for at in range(100):
        firewall.rules()
        put(firewall, CONTENT)
        firewall.rules(*RULES)
        verdicts(firewall)  # something is counted
        before = state(firewall), firewall.enforcer.sets()
        sabotage.begin(at)
        try:
            CHANGES[name](firewall)
        except KernelRefused:
            sabotage.repair()
            assert (state(firewall), firewall.enforcer.sets()) == before, sabotage.steps
            assert verdicts(firewall) == expected_verdicts(firewall), sabotage.steps
            assert_exact(firewall)
        else:
            sabotage.repair()
            break
    assert at > 0
    assert_exact(firewall)
    assert verdicts(firewall) == expected_verdicts(firewall)


@pytest.mark.parametrize("name", CHANGES)
def test_what_rules_with_sets_have_counted_is_not_lost(firewall: Loaded, few: None, name: str) -> None:
    put(firewall, CONTENT)
    firewall.rules(*RULES)
    verdicts(firewall)
    before = firewall.all_hits()
    assert before["first"][0] and before["port"][0]
    CHANGES[name](firewall)
    firewall.kernel.settle()
    after = firewall.all_hits()
    expected = {
        rule: hits for rule, hits in before.items() if name != "the rule that wins goes" or rule != "first"
    }
    assert {rule: hits for rule, hits in after.items() if rule in before} == expected
    firewall.restart()
    assert {rule: hits for rule, hits in firewall.all_hits().items() if rule in before} == expected
    assert_exact(firewall)


@pytest.fixture
def in_parts_of_one(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.set_expiry._EXPIRE_AT_ONCE", 1)


def test_what_goes_in_parts_has_its_hits_counted(firewall: Loaded, in_parts_of_one: None) -> None:
    put(firewall, {"a": CONTENT["a"], "b": ()})
    firewall.rules({"id": "first", "sources": ["@a"], "direction": "both"})
    expiring(firewall, "a", EXPIRE)
    verdicts(firewall)
    before = firewall.all_hits()
    assert before["first"][0]
    expire(firewall)
    assert firewall.all_hits() == before
    assert_exact(firewall)
    firewall.restart()
    assert firewall.all_hits() == before


def test_entries_expire_though_the_kernel_refuses_at_any_step(
    firewall: Loaded, in_parts_of_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage = Sabotage(monkeypatch)
    for at in range(100):
        firewall.rules()
        put(firewall, CONTENT)
        # Where two rules stand at one prefix, one wins from then on that did not before.
        firewall.rules(*RULES[:3])
        expiring(firewall, "a", EXPIRE)
        verdicts(firewall)
        before = firewall.all_hits()
        sabotage.begin(at)
        try:
            expire(firewall)
        except KernelRefused:
            sabotage.repair()
            memory = {
                key: tuple(entry)
                for version in (4, 6)
                for key, entry in decoded(firewall.enforcer._ruleset.addresses.winners(version))
            }
            kernel = {key: (each.rank, each.handle) for key, each in visible_entries(firewall).items()}
            if (
                firewall.enforcer._has_fallen
            ):  # so these are dead, and memory has them until they are taken out
                assert {text_of(key) for key in memory.keys() - kernel.keys()} <= set(EXPIRE)
                memory = {key: memory[key] for key in kernel}
            assert kernel == memory, sabotage.steps
            expire(firewall)
        else:
            sabotage.repair()
            break
        assert_exact(firewall)
        assert firewall.all_hits() == before
        assert verdicts(firewall) == expected_verdicts(firewall), sabotage.steps
    assert at > 0
    assert_exact(firewall)


def test_whoever_is_killed_while_entries_expire_starts_without_them(
    firewall: Loaded, in_parts_of_one: None
) -> None:
    for parts in range(12):
        put(firewall, CONTENT)
        firewall.rules(*RULES)
        expiring(firewall, "a", EXPIRE)
        expire(firewall, parts)
        firewall.restart()
        assert stored_sets(firewall)["a"] == [parse_prefix("172.16.0.0/12")]
        assert_exact(firewall)
        assert verdicts(firewall) == expected_verdicts(firewall)


# -- many that expire together


SOON_S = 0.6
GONE = [f"10.1.{n}.1" for n in range(20)] + ["2001:db8:1::1", "10.2.0.0/16"]
GONE_FRAMES = [tcp(source, dport=80) for source in ("10.1.3.1", "10.1.19.1", "10.2.3.4", "2001:db8:1::1")]


def step(firewall: Loaded) -> None:
    """What the watching thread does once."""
    with firewall.enforcer._lock:
        firewall.enforcer._expire_entries()


def get_ready(firewall: Loaded, ttl: float = SOON_S) -> float:
    """Entries of set "a" that expire together are ready in the kernel; answers when they expire."""
    put(firewall, {"a": ["10.0.0.1"], "b": ()})
    firewall.rules({"id": "first", "sources": ["@a"], "direction": "both", "priority": 50})
    until = time.time() + ttl
    firewall.enforcer.add_entries("a", entry_columns(SetEntry(parse_prefix(each), until) for each in GONE))
    while firewall.enforcer._departure is None or not firewall.enforcer._departure.is_ready:
        step(firewall)
    if time.time() < until:
        return until
    expire(firewall)  # the machine was busy
    return get_ready(firewall, 4 * ttl)


def judged(firewall: Loaded) -> list[str]:
    return [firewall.judge(frame, "ingress").verdict for frame in GONE_FRAMES]


def fall(firewall: Loaded, until: float) -> None:
    wait_for(lambda: time.time() > until)
    step(firewall)
    assert firewall.enforcer._has_fallen


@pytest.fixture
def together(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.set_expiry._EXPIRE_AT_ONCE", 4)


def test_many_that_expire_together_fall_at_one_moment(firewall: Loaded, together: None) -> None:
    until = get_ready(firewall)
    firewall.add(id="other", sources=["192.0.2.7", "192.0.2.8"], priority=3)
    firewall.add(id="ports", destination_ports=[22], priority=3)
    assert judged(firewall) == ["drop"] * 4
    epoch = firewall.kernel._datapath.epoch
    fall(firewall, until)
    assert judged(firewall) == ["pass"] * 4
    assert firewall.kernel._datapath.epoch & 1 == epoch & 1
    assert firewall.enforcer.set("a").entries == 1 + len(GONE), "nothing was taken out yet"
    assert firewall.judge(tcp("10.0.0.1"), "ingress").verdict == "drop"
    hits = firewall.all_hits()
    expire(firewall)
    assert_exact(firewall)
    assert firewall.all_hits() == hits and hits["first"][0] == 5
    assert firewall.enforcer._departure is None


def again_with_another_time(firewall: Loaded) -> None:
    firewall.enforcer.add_entries("a", entry_columns([SetEntry(parse_prefix("10.1.3.1"), time.time() + 100)]))


def again_after_it_went(firewall: Loaded) -> None:
    firewall.enforcer.delete_entries("a", columns(["10.1.3.1"]))
    firewall.enforcer.add_entries("a", columns(["10.1.3.1"]))


def all_with_another_time(firewall: Loaded) -> None:
    firewall.enforcer.add_entries("a", columns(GONE))


BEFORE_THE_FALL: dict[str, tuple[Callable[[Loaded], object], list[str]]] = {
    "nothing": (lambda firewall: None, ["pass"] * 4),
    "an entry gets another time": (again_with_another_time, ["drop", "pass", "pass", "pass"]),
    "an entry goes and comes": (again_after_it_went, ["drop", "pass", "pass", "pass"]),
    "all get another time": (all_with_another_time, ["drop"] * 4),
    "a rule that loses names one": (
        lambda firewall: firewall.add(id="loses", sources=["10.1.3.1"], priority=90),
        ["drop", "pass", "pass", "pass"],
    ),
    "a rule that wins names one": (
        lambda firewall: firewall.add(id="wins", sources=["10.1.3.1"], priority=1),
        ["drop", "pass", "pass", "pass"],
    ),
    "a rule that loses names the set of others": (
        lambda firewall: (
            firewall.enforcer.add_entries("b", columns(["10.1.19.1", "2001:db8:1::1"])),
            firewall.add(id="loses", sources=["@b"], priority=90),
        ),
        ["pass", "drop", "pass", "drop"],
    ),
    "an import names one": (
        lambda firewall: firewall.enforcer.import_list(
            parse_list("10.1.3.1\n10.9.9.9"), "drop", 90, "ingress"
        ),
        ["drop", "pass", "pass", "pass"],
    ),
    "the rule gets another priority": (
        lambda firewall: firewall.edit("first", priority=60),
        ["pass"] * 4,
    ),
    "the rule goes and another names the set": (
        lambda firewall: (
            firewall.delete("first"),
            firewall.add(id="second", sources=["@a"], priority=70),
        ),
        ["pass"] * 4,
    ),
}


@pytest.mark.parametrize("what", BEFORE_THE_FALL)
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
def test_what_changes_while_entries_wait_to_fall_is_right_after(
    firewall: Loaded, together: None, what: str, is_before: bool
) -> None:
    until = get_ready(firewall)
    change, expected = BEFORE_THE_FALL[what]
    if not is_before:
        fall(firewall, until)
    change(firewall)
    if is_before:
        while firewall.enforcer._departure is None or not firewall.enforcer._departure.is_ready:
            if time.time() > until or firewall.enforcer._set_store.next_expiry() is None:
                break
            step(firewall)
        assert judged(firewall) == ["drop"] * 4
        wait_for(lambda: time.time() > until)
        step(firewall)
    if not is_before:
        assert judged(firewall) == expected, "what has fallen comes back"
    elif firewall.enforcer._departure is not None:
        found = judged(firewall)
        assert all(
            verdict == "drop" for verdict, right in zip(found, expected, strict=True) if right == "drop"
        )
    expire(firewall)
    assert judged(firewall) == expected
    assert_exact(firewall)


def test_entries_that_wait_to_fall_are_known_after_growth_of_the_policy(
    fresh: Loaded, together: None
) -> None:
    """Programs for larger tables are put in the place of the present ones."""
    until = get_ready(fresh, 8)
    before = fresh.kernel._datapath
    fresh.batch(
        [
            {
                "id": f"p{n}",
                "sources": [f"100.{n >> 8}.{n & 255}.0/24"],
                "destination_ports": [2 * n],
                "priority": n,
            }
            for n in range(1200)
        ],
        [],
    )
    assert fresh.kernel._datapath is not before
    again_with_another_time(fresh)
    fall(fresh, until)
    assert judged(fresh) == ["drop", "pass", "pass", "pass"]
    expire(fresh)
    assert_exact(fresh)


def test_what_a_replaced_list_leaves_goes_in_parts_while_others_change_things(
    fresh: Loaded, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firewall.kernel.parts.SIZE", 8)
    old = [f"10.{n >> 8}.{n & 255}.1" for n in range(600)] + ["2001:db8::/33", "2001:db8:8000::/34"]
    put(fresh, {"a": old})
    fresh.rules({"id": "set", "sources": ["@a"]})
    fresh.kernel.settle()
    put(fresh, {"a": ["192.0.2.1", "2001:db8:8000::/33"]})
    datapath = fresh.kernel._datapath
    assert fresh.judge(tcp("10.0.7.1")).verdict == "pass"
    wait_for(lambda: datapath.settles_at_once)
    assert fresh.kernel.tidy() and not datapath.is_settled
    fresh.add(id="one", sources=["10.0.7.1"])  # which is among those that are left
    fresh.add(id="six", sources=["2001:db8::/33"])
    fresh.add(id="other", sources=["198.51.100.7"])
    fresh.delete("other")
    assert len(datapath._dead), "a single change need not wait for them"
    assert fresh.judge(tcp("10.0.7.1")).verdict == fresh.judge(tcp("2001:db8:1::1")).verdict == "drop"
    assert fresh.judge(tcp("10.0.8.1")).verdict == "pass"
    while fresh.kernel.tidy():
        assert fresh.judge(tcp("10.0.7.1")).verdict == "drop"
    assert datapath.is_settled
    assert_exact(fresh)
    put(fresh, {"a": old})
    put(fresh, {"a": ["192.0.2.1"]})
    put(fresh, {"a": old})  # comes again before it went
    assert fresh.judge(tcp("10.0.8.1")).verdict == "drop"
    assert_exact(fresh)
    put(fresh, {"a": ["192.0.2.1"]})
    fresh.restart()  # as after a crash
    assert_exact(fresh)


def test_entries_that_get_back_the_time_they_had_do_not_fall(firewall: Loaded, together: None) -> None:
    put(firewall, {"a": GONE})
    firewall.rules({"id": "first", "sources": ["@a"], "direction": "both"})
    until = time.time() + SOON_S
    expiring = entry_columns(SetEntry(parse_prefix(each), until) for each in GONE)
    firewall.enforcer.cautiously(
        Caution("a time", confirm_within_s=60), lambda: firewall.enforcer.add_entries("a", expiring)
    )
    while firewall.enforcer._departure is None or not firewall.enforcer._departure.is_ready:
        step(firewall)
    firewall.enforcer.roll_back()
    wait_for(lambda: time.time() > until)
    for _ in range(20):
        step(firewall)
    assert judged(firewall) == ["drop"] * 4
    assert_exact(firewall)


def test_replacing_a_set_shows_no_packet_a_mixture(firewall: Loaded, few: None) -> None:
    """Both contents drop the hosts, by other entries; a third host passes by an allow over all of them."""
    one = [DROPPED_HOSTS[0], "10.0.0.2/31"]
    other = ["10.0.0.0/31", DROPPED_HOSTS[1]]
    put(firewall, {"a": one, "b": other})
    firewall.rules(
        *both(
            {"id": "set", "sources": ["@a"], "priority": 200},
            {"id": "ports", "sources": ["@b"], "destination_ports": [22], "priority": 200},
            BASE[3],
        )
    )
    with flooded(firewall):
        for turn in range(SWAPS):
            put(firewall, {"a": one if turn % 2 else other, "b": other if turn % 2 else one})
    assert_exact(firewall)


def test_a_rule_over_a_set_that_changes_its_mind_shows_no_packet_a_mixture(
    firewall: Loaded, few: None
) -> None:
    """Two rules of one set take turns in winning, both drop."""
    put(firewall, {"a": DROPPED_HOSTS})
    firewall.rules(
        *both(
            {"id": "one", "sources": ["@a"], "priority": 100},
            {"id": "two", "sources": ["@a"], "priority": 200},
            BASE[3],
        )
    )
    with flooded(firewall):
        for turn in range(SWAPS):
            if turn % 3 == 2:
                firewall.edit("one", enabled=False)
                firewall.edit("one", enabled=True)
            else:
                firewall.edit("one", priority=300 if turn % 2 else 100)
    assert_exact(firewall)
