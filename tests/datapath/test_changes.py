"""What a change of rules does to the maps: all or nothing, whatever the kernel refuses and wherever it ends.

Each test compares what packets meet, what was counted and what the maps hold before and after. The process
that crashes here lets go of its descriptors and does nothing more; its pins and its state stay.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from firewall.address_list import parse_list
from firewall.datapath import Change
from firewall.errors import KernelRefused, StoreFailed, TableFull
from firewall.kernel import bpf, linux, program_set
from firewall.kernel import maps as firewall_maps
from firewall.kernel.bpf import Map
from firewall.kernel.grace import GracePeriod
from firewall.layout import HOOKS
from firewall.store import Store
from tests import oracle
from tests.datapath.contents import assert_exact, visible_entries
from tests.datapath.frames import tcp
from tests.datapath.loaded import HERE, Judged, Loaded
from tests.datapath.sabotage import Sabotage

Rule = dict[str, Any]
SWAPS = int(os.environ.get("SWAPS", "300"))
PASSES, DROPPED, ALLOWED = Judged("pass", "default"), Judged("drop", "rule"), Judged("pass", "rule")

# Both structures, both families, a prefix that two rules share, and a rule of both directions.
BASE: list[Rule] = [
    {"id": "net", "sources": ["10.0.0.0/8", "2001:db8::/32"], "action": "allow"},
    {"id": "host", "sources": ["10.0.0.1"], "priority": 10, "direction": "both"},
    {"id": "twin", "sources": ["10.0.0.1"], "priority": 20, "action": "allow"},
    {"id": "host6", "sources": ["2001:db8::1"], "priority": 10},
    {"id": "port", "destination_ports": [22], "priority": 5},
    {"id": "both", "sources": ["10.0.0.2"], "destination_ports": [23], "action": "allow", "priority": 4},
]
NEW: list[Rule] = [
    {"id": "new4", "sources": ["10.0.0.3", "10.0.0.4", "172.16.0.0/12"], "priority": 1},
    {"id": "new6", "sources": ["2001:db8::3", "2001:db8::4", "2000::/3"], "priority": 1},
    {"id": "new-port", "destination_ports": [24], "sources": ["10.0.0.0/9"], "priority": 1},
]
SOURCES = (
    "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "172.16.0.1", "2001:db8::1", "2001:db8::3", "2001:db8::4",
    "2001::1", "192.0.2.1",
)  # fmt: skip
FRAMES = [tcp(source, dport=port) for source in SOURCES for port in (22, 24, 80)] + [
    tcp("10.0.0.2", dport=23)
]


# New prefixes, one that a rule has, and short ones.
LIST = parse_list("10.0.0.3\n10.0.0.1\n172.16.0.0/12\n2001:db8::3\n2001:db8::1\n2000::/3")

CHANGES: dict[str, Callable[[Loaded], object]] = {
    "add an address rule": lambda firewall: firewall.add(id="one", sources=["10.0.0.3"], priority=1),
    "delete an address rule": lambda firewall: firewall.delete("host6"),
    "delete the winner of a prefix": lambda firewall: firewall.delete("host"),
    "edit an address rule": lambda firewall: firewall.edit("host6", action="allow"),
    "edit a rule of several addresses": lambda firewall: firewall.edit("net", action="drop"),
    "move an address rule": lambda firewall: firewall.edit("host", sources=["10.0.0.4"]),
    "add a policy rule": lambda firewall: firewall.add(id="one", destination_ports=[24], priority=1),
    "delete a policy rule": lambda firewall: firewall.delete("port"),
    "an address rule becomes a policy rule": lambda firewall: firewall.edit("host", destination_ports=[80]),
    "a policy rule becomes an address rule": lambda firewall: firewall.edit("both", destination_ports=[]),
    "a batch of everything": lambda firewall: firewall.batch(NEW, ["net", "host", "port", "host6"]),
    "replace everything": lambda firewall: firewall.rules(*NEW, *BASE[:2]),
    "delete everything": lambda firewall: firewall.rules(),
    "import address lists": lambda firewall: firewall.enforcer.import_list(LIST, "drop", 3, "ingress"),
}


def verdicts(firewall: Loaded) -> list[Judged]:
    return [firewall.judge(frame, hook) for hook in ("ingress", "egress") for frame in FRAMES]


def expected_verdicts(rules: Sequence[Rule]) -> list[Judged]:
    judgements = (
        oracle.judge(rules, frame, direction=hook, interface="pretended-interface-0")
        for hook in ("ingress", "egress")
        for frame in FRAMES
    )
    return [Judged(each.verdict, each.reason) for each in judgements]


def stored(firewall: Loaded) -> list[Rule]:
    return [rule.fields() for rule in firewall.enforcer.export()[0]]


def state(firewall: Loaded) -> tuple[object, ...]:
    """What packets meet, what was counted, what is stored: by rule and by map entry."""
    return visible_entries(firewall), firewall.all_hits(), stored(firewall), firewall.enforcer.etag()


def base(firewall: Loaded) -> None:
    firewall.rules()
    firewall.rules(*BASE)
    assert verdicts(firewall) == expected_verdicts(BASE)


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Sabotage:
    return Sabotage(monkeypatch)


def fails_at_every_step(
    firewall: Loaded,
    sabotage: Sabotage,
    change: Callable[[Loaded], object],
    goes_on: bool,
    after: Callable[[], None],
) -> int:
    """Calls `after` with each state that a failure at a step left; answers the number of steps."""
    for at in range(200):
        base(firewall)
        before = state(firewall)
        sabotage.begin(at, goes_on)
        try:
            change(firewall)
        except KernelRefused:
            sabotage.repair()
            assert state(firewall)[2:] == before[2:], sabotage.steps
            if not goes_on:
                assert state(firewall) == before, sabotage.steps
            after()
        else:
            sabotage.repair()
            return at
    raise AssertionError("no end of steps")


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_the_kernel_refuses_at_any_step_leaves_all_as_it_was_and_works_when_repeated(
    firewall: Loaded, sabotage: Sabotage, name: str
) -> None:
    def after() -> None:
        assert verdicts(firewall) == expected_verdicts(BASE), sabotage.steps
        assert_exact(firewall)
        CHANGES[name](firewall)
        assert verdicts(firewall) == expected_verdicts(stored(firewall)), sabotage.steps
        firewall.add(id="next", sources=["10.0.0.0/29"], protocols=["tcp"], priority=0)
        assert verdicts(firewall) == expected_verdicts(stored(firewall)), sabotage.steps
        assert_exact(firewall)

    assert fails_at_every_step(firewall, sabotage, CHANGES[name], False, after) > 0
    assert_exact(firewall)
    assert verdicts(firewall) == expected_verdicts(stored(firewall))


@pytest.mark.parametrize("name", CHANGES)
def test_a_kernel_that_refuses_for_a_while_has_all_rules_right_after_the_next_change(
    firewall: Loaded, sabotage: Sabotage, name: str
) -> None:
    """From some step on nothing works, not even to take back what was done: the rules in force are still the
    old ones, and later changes bring no leftover to life."""

    def after() -> None:
        assert verdicts(firewall) == expected_verdicts(BASE), sabotage.steps
        for number in range(2):
            firewall.add(id=f"next-{number}", sources=[f"192.0.2.{number}", f"2001:db8:7::{number}"])
            assert verdicts(firewall) == expected_verdicts(stored(firewall)), sabotage.steps
        firewall.add(id="policy", destination_ports=[25])
        assert verdicts(firewall) == expected_verdicts(stored(firewall)), sabotage.steps
        assert_exact(firewall)

    fails_at_every_step(firewall, sabotage, CHANGES[name], True, after)


@pytest.mark.parametrize("name", CHANGES)
def test_a_crash_at_any_step_leaves_all_as_it_was_for_the_next_start(
    firewall: Loaded, sabotage: Sabotage, name: str
) -> None:
    def after() -> None:
        assert verdicts(firewall) == expected_verdicts(BASE), sabotage.steps
        firewall.restart()
        assert verdicts(firewall) == expected_verdicts(BASE), sabotage.steps
        firewall.add(id="later", sources=["192.0.2.1", "2001:db8:7::1"])
        assert verdicts(firewall) == expected_verdicts(stored(firewall)), sabotage.steps
        assert_exact(firewall)

    fails_at_every_step(firewall, sabotage, CHANGES[name], True, after)


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_that_fails_after_the_kernel_did_the_change_undoes_it(
    firewall: Loaded, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    base(firewall)
    before = stored(firewall)

    def refuse(*_: object) -> None:
        raise StoreFailed("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_hits", refuse)
        with pytest.raises(StoreFailed):
            CHANGES[name](firewall)
    assert stored(firewall) == before
    assert verdicts(firewall) == expected_verdicts(BASE)
    assert_exact(firewall)


def test_settling_that_fails_is_made_up_for(firewall: Loaded, sabotage: Sabotage) -> None:
    for at in range(3):
        base(firewall)
        firewall.kernel.settle()
        firewall.batch(NEW, ["net", "host", "host6"])
        sabotage.begin(at)
        with pytest.raises(KernelRefused):
            firewall.kernel.settle()
        sabotage.repair()
        assert verdicts(firewall) == expected_verdicts(stored(firewall))
        assert_exact(firewall)


def test_tidying_waits_for_no_packet(firewall: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a look at the maps, which finds nothing wrong in what the change left for later."""
    base(firewall)
    firewall.batch(NEW, ["net", "host", "host6"])
    datapath = firewall.kernel._datapath
    with monkeypatch.context() as patch:
        patch.setattr(GracePeriod, "has_passed", False)
        patch.setattr(GracePeriod, "finish", None)  # nobody may wait
        firewall.kernel.tidy()
        firewall.enforcer._watched.look_at_maps()
    assert not datapath.is_settled
    assert firewall.enforcer._watched.details() == []
    with monkeypatch.context() as patch:
        patch.setattr(GracePeriod, "has_passed", True)
        firewall.kernel.tidy()
    assert datapath.is_settled
    assert_exact(firewall)


# --- one moment --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_a_change_of_many_rules_happens_at_one_moment(firewall: Loaded, hook: str) -> None:
    """While packets are judged as fast as they can be, the rule set goes round between sets that all drop
    them. Every mixture of two of the sets would pass some."""
    crowd = [{"sources": [f"10.{high}.{low}.0/24" for low in range(250)]} for high in range(1, 5)]
    host, net = {"sources": ["10.0.0.1"]}, {"sources": ["10.0.0.0/24"], "action": "allow", "priority": 900}
    sets: list[list[Rule]] = [
        [*crowd, net, {**host, "priority": 800}],
        [{**net, "priority": 700}, {"destination_ports": [22], "priority": 600}, *crowd[:2]],
        [*crowd[1:], {**net, "priority": 500}, {"destinations": ["198.51.100.0/24"], "priority": 400}],
        [{**net, "protocols": ["tcp"], "priority": 300}, {**host, "protocols": ["tcp"], "priority": 200}],
        # Each alone in its list, so that the list comes with it and goes with it.
        [{"sources": ["10.0.0.0/24", "2001:db8::1"]}],
        [{"destinations": ["198.51.100.0/24", "2001:db8::1"]}],
    ]
    sets = [
        [{**rule, "id": f"r{place}", "direction": hook} for place, rule in enumerate(rules)] for rules in sets
    ]
    frame = tcp("10.0.0.1", dport=22)
    firewall.rules(*sets[0])
    assert firewall.judge(frame, hook) == DROPPED
    program = firewall.program(hook)
    is_over = threading.Event()

    def flood() -> None:
        while not is_over.is_set():
            bpf.test_run(program, frame, repeat=20_000)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        for turn in range(60):
            firewall.rules(*sets[(turn + 1) % len(sets)])
    finally:
        is_over.set()
        flooding.join()
    verdicts_seen = firewall.counted_since_last()
    assert {verdict for _, verdict, _ in verdicts_seen} == {"drop"}, verdicts_seen
    assert sum(packets for packets, _ in verdicts_seen.values()) > 40_000


def test_no_packet_meets_a_mixture_of_two_rule_sets_that_are_swapped_over_and_over(firewall: Loaded) -> None:
    """Each set drops both hosts, one by an address rule and the other by a policy rule, over a worse rule of the
    other structure that allows. The addresses of one set with the policy of the other would pass one of them."""
    first, second = "10.0.0.1", "10.0.0.2"
    bystanders = {"sources": [f"10.1.{low}.0/24" for low in range(50)]}

    def swapped(by_address: str, by_policy: str, priority: int) -> list[Rule]:
        rules: list[Rule] = [
            {"sources": [by_address], "priority": priority},
            {"sources": [by_address], "protocols": ["tcp"], "action": "allow", "priority": priority + 1},
            {"sources": [by_policy], "protocols": ["tcp"], "priority": priority},
            {"sources": [by_policy], "action": "allow", "priority": priority + 1},
            bystanders,
        ]
        return [{**rule, "id": f"r{place}", "direction": "both"} for place, rule in enumerate(rules)]

    sets = swapped(first, second, 10), swapped(second, first, 20)
    frames = [tcp(host, dport=22) for host in (first, second)]
    for rules in sets:
        firewall.rules(*rules)
        assert all(firewall.judge(frame, hook) == DROPPED for frame in frames for hook in HOOKS)
    firewall.counted_since_last()
    is_over = threading.Event()

    def flood(hook: str) -> None:
        program = firewall.program(hook)
        while not is_over.is_set():
            for frame in frames:
                bpf.test_run(program, frame, repeat=2_000)

    flooding = [threading.Thread(target=flood, args=(hook,)) for hook in HOOKS]
    for thread in flooding:
        thread.start()
    try:
        for turn in range(SWAPS):
            firewall.rules(*sets[turn % 2])
    finally:
        is_over.set()
        for thread in flooding:
            thread.join()
    seen = firewall.counted_since_last()
    assert {verdict for _, verdict, _ in seen} == {"drop"}, seen
    assert min(packets for packets, _ in seen.values()) > 100 * SWAPS, seen


# --- growth ------------------------------------------------------------------------------------------------


def crowd(count: int, version: int) -> list[str]:
    return [
        f"100.{n >> 16}.{n >> 8 & 255}.{n & 255}" if version == 4 else f"2001:db8:1::{n:x}"
        for n in range(count)
    ]


def capacity(firewall: Loaded, name: str) -> int:
    return firewall.kernel._set.maps[name].info.max_entries


def refuse(*_: object, **__: object) -> None:
    raise KernelRefused("the kernel said no")


def test_address_tables_grow_or_stay_as_they_were(fresh: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Growth fails at every step, and is interrupted at every step, before it may succeed."""
    for owner, step in (
        (Map, "hash"),
        (Map, "update_batch"),
        (firewall_maps, "pin"),
        (Map, "point_at"),
        (Path, "rename"),
    ):
        base(fresh)
        before = state(fresh)
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, refuse)
            with pytest.raises(KernelRefused):
                fresh.add(id="many", sources=crowd(20_000, 6))
        if step != "rename":  # which no file system refuses: there the process may only end
            assert state(fresh) == before, step
            assert verdicts(fresh) == expected_verdicts(BASE), step
            assert_exact(fresh)
        fresh.restart()
        assert verdicts(fresh) == expected_verdicts(BASE), step
        fresh.delete("host")
        assert verdicts(fresh) == expected_verdicts(stored(fresh)), step
        assert_exact(fresh)
    base(fresh)
    hits = fresh.all_hits()
    for version in (4, 6):
        had = address_room(fresh, version), address_room(fresh, 10 - version)
        many = crowd(20_000, version)
        fresh.add(id="many", sources=many)
        assert address_room(fresh, version) > had[0]
        assert address_room(fresh, 10 - version) == had[1]
        assert fresh.all_hits() == hits
        assert {fresh.judge(tcp(source)) for source in many[::97]} == {DROPPED}
        fresh.delete("many")
        assert {fresh.judge(tcp(source)).verdict for source in many[::97]} == {"pass"}
        hits = fresh.all_hits()
    assert verdicts(fresh) == expected_verdicts(BASE)
    assert_exact(fresh)
    programs = fresh.program_ids()
    fresh.restart()
    assert fresh.program_ids() == programs, "the larger tables were not found again"
    assert verdicts(fresh) == expected_verdicts(BASE)


def address_room(firewall: Loaded, version: int) -> int:
    """Elements of all that holds a family's entries."""
    rows = ("address_rows0", "address_rows1") if version == 4 else ()
    return sum(capacity(firewall, name) for name in (f"address{version}", *rows))


MANY_VECTORS = [
    {"id": f"v{n}", "sources": [f"100.{n >> 8}.{n & 255}.0/24"], "destination_ports": [2 * n], "priority": n}
    for n in range(1200)
]


def test_policy_tables_grow_or_stay_as_they_were(fresh: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    base(fresh)
    for owner, step in ((program_set, "assemble"), (linux, "write_policy")):
        before = state(fresh)
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, refuse)
            with pytest.raises(KernelRefused):
                fresh.batch(MANY_VECTORS, [])
        assert state(fresh) == before, step
        assert verdicts(fresh) == expected_verdicts(BASE), step
        assert_exact(fresh)
    judged, hits, had = verdicts(fresh), fresh.all_hits(), capacity(fresh, "policy_vectors")
    leave_behind(fresh)
    fresh.batch(MANY_VECTORS, [])
    assert capacity(fresh, "policy_vectors") > had
    assert not (fresh.kernel._pin_root / "next").exists()
    assert fresh.all_hits() == hits
    assert verdicts(fresh) == judged
    for n in range(2, 700, 53):
        frames = [tcp(f"100.{n >> 8}.{n & 255}.7", dport=port) for port in (2 * n, 2 * n + 1)]
        assert [fresh.judge(frame) for frame in frames] == [DROPPED, PASSES]
    assert fresh.hits("v55") == (1, len(tcp()))
    assert_exact(fresh)
    fresh.rules(*BASE)
    assert verdicts(fresh) == judged
    assert_exact(fresh)


def leave_behind(firewall: Loaded) -> None:
    """What a crash leaves while a larger set is being built, or a larger table."""
    pins, address6 = firewall.kernel._pin_root, firewall.kernel._set.maps["address6"].fd
    (pins / "next" / "maps").mkdir(parents=True)
    bpf.pin(address6, pins / "next" / "maps" / "address4")
    bpf.pin(address6, pins / "maps" / "address4_new")


@pytest.mark.parametrize("max_rules", [100, 8192])
def test_another_capacity_builds_anew_with_the_same_rules(fresh: Loaded, max_rules: int) -> None:
    base(fresh)
    programs = fresh.program_ids()
    fresh.restart(bpf={"max_rules": max_rules, "max_addresses": 10})
    assert fresh.program_ids() != programs
    assert verdicts(fresh) == expected_verdicts(BASE)
    assert_exact(fresh)
    fresh.batch([{"id": f"p{n}", "destination_ports": [n + 100], "priority": 900} for n in range(98)], [])
    assert fresh.judge(tcp(dport=197)) == DROPPED
    assert_exact(fresh)
    judged = verdicts(fresh)
    full: list[list[Rule]] = [[{"id": "a", "sources": crowd(8, 4)}]]
    full += [[{"id": f"q{n}", "destination_ports": [n]} for n in range(3)]] if max_rules == 100 else []
    for rules in full:
        before = state(fresh)
        with pytest.raises(TableFull):
            fresh.batch(rules, [])
        assert state(fresh) == before
        assert verdicts(fresh) == judged


# --- start after a crash -----------------------------------------------------------------------------------


def test_a_start_after_a_crash_finds_programs_rules_and_counters(firewall: Loaded) -> None:
    base(firewall)
    hits, counted = firewall.all_hits(), firewall.kernel.interface_hits()[HERE]
    programs = firewall.program_ids()
    firewall.restart()
    assert firewall.program_ids() == programs, "compiled again"
    assert firewall.all_hits() == hits
    assert firewall.kernel.interface_hits()[HERE] == counted
    assert verdicts(firewall) == expected_verdicts(BASE)
    assert {rule: packets for rule, (packets, _) in firewall.all_hits().items()} == {
        rule: 2 * packets for rule, (packets, _) in hits.items()
    }
    firewall.add(id="new", destination_ports=[80], priority=1)
    assert firewall.hits("new") == (0, 0)
    assert firewall.judge(tcp("10.0.0.1", dport=80)) == DROPPED
    assert firewall.hits("new")[0] == 1


def test_after_a_crash_no_rule_counts_where_it_once_did(firewall: Loaded) -> None:
    """A rule that left the policy and came back has another slot; the old one must not be taken for it."""
    firewall.rules(*({"id": f"f{n}", "destination_ports": [n], "priority": n} for n in range(10)))
    firewall.edit("f9", enabled=False)
    firewall.batch([], [f"f{n}" for n in range(8)])
    firewall.add(id="other", destination_ports=[99], priority=20)
    firewall.edit("f9", enabled=True)
    # The live generation is now the one in which f9 stood behind nine others.
    firewall.judge(tcp(dport=9))
    before = firewall.all_hits()
    assert before == {"f9": (1, len(tcp()))}
    firewall.restart()
    assert firewall.all_hits() == before
    firewall.judge(tcp(dport=9))
    assert firewall.hits("f9")[0] == 2


def test_a_crash_between_change_and_settling_leaves_nothing_behind(firewall: Loaded) -> None:
    base(firewall)
    firewall.batch(NEW, ["net", "host", "host6", "port"])
    expected = expected_verdicts(stored(firewall))
    firewall.restart()
    assert_exact(firewall)
    assert verdicts(firewall) == expected


@pytest.mark.parametrize(
    "name", ["delete the winner of a prefix", "a batch of everything", "delete a policy rule"]
)
def test_rules_that_the_kernel_has_and_the_store_has_not_are_gone_after_a_start(
    firewall: Loaded, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A crash after the kernel did the change and before the store kept it."""
    base(firewall)
    apply = firewall.kernel.apply

    def apply_and_die(change: Change) -> None:
        monkeypatch.setattr(firewall.kernel, "apply", refuse)  # nobody is left to undo it
        apply(change)
        raise KeyboardInterrupt

    monkeypatch.setattr(firewall.kernel, "apply", apply_and_die)
    with pytest.raises(KeyboardInterrupt):
        CHANGES[name](firewall)
    assert verdicts(firewall) != expected_verdicts(BASE)
    firewall.restart()
    assert verdicts(firewall) == expected_verdicts(BASE)
    assert_exact(firewall)
