"""Changes that wait are made together: durable with one COMMIT, each refused alone, all taken back where it fails."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from firewall.commit import Outcome
from firewall.datapath import Change
from firewall.errors import AlreadyExists, KernelRefused, NotFound, StoreFailed, kernel_refused
from firewall.hits import Hits
from tests.unit.failing_database import fail_on
from tests.unit.host import Host, wait_for

Call = Callable[[], object]


def add(host: Host, rule_id: str, **fields: Any) -> Call:
    return lambda: host.firewall.add(host.rule(rule_id, **fields))


def put(host: Host, rule_id: str, **fields: Any) -> Call:
    return lambda: host.firewall.replace(host.rule(rule_id, **fields))


def delete(host: Host, rule_id: str) -> Call:
    return lambda: host.firewall.delete(rule_id)


def errors(outcomes: list[Outcome]) -> list[type[Exception] | None]:
    return [type(each.error) if each.error else None for each in outcomes]


def commits(host: Host) -> list[str]:
    """The COMMITs that the store is asked for from now on."""
    found: list[str] = []
    host.firewall._store._writer.set_trace_callback(
        lambda sql: found.append(sql) if sql.startswith("COMMIT") else None
    )
    return found


@pytest.fixture
def furnished(host: Host) -> Host:
    host.add("a", sources="10.0.0.1")
    host.add("b", sources="10.0.0.2")
    host.add("below", sources="10.0.0.1", action="allow")
    host.add("policy", destination_ports=[80])
    host.hit("10.0.0.1", 5)
    host.hit("10.0.0.2", 7)
    host.hit_policy("policy", 6)
    return host


def a_group(host: Host) -> list[Call]:
    return [
        add(host, "c", sources="10.0.0.3"),
        put(host, "b", sources="10.0.0.4"),
        delete(host, "a"),
        add(host, "first", sources="10.0.0.4", priority=1),
        put(host, "c", sources=["10.0.0.5", "2001:db8::1"], direction="both"),
        add(host, "off", sources="10.0.0.9", enabled=False),
        put(host, "c", sources="10.0.0.2"),
    ]


def test_a_group_is_made_in_order_with_one_commit(furnished: Host) -> None:
    found = commits(furnished)
    outcomes = furnished.firewall.together(a_group(furnished))
    assert errors(outcomes) == [None] * 7
    assert found == ["COMMIT"]
    assert furnished.ids() == ["b", "below", "policy", "c", "first", "off"]
    assert furnished.packets("b") == 7 and furnished.packets("policy") == 6
    before = furnished.state()
    furnished.kill()
    furnished.start()
    assert furnished.state() == before


def test_a_group_of_reads_and_refusals_needs_no_disk(furnished: Host) -> None:
    before = furnished.state()
    outcomes = furnished.firewall.together(
        [
            delete(furnished, "x"),
            add(furnished, "a", sources="10.0.0.7"),
            lambda: furnished.firewall.rule("a"),
        ]
    )
    assert errors(outcomes) == [NotFound, AlreadyExists, None]
    assert furnished.state() == before


def test_one_that_is_refused_leaves_no_trace_and_the_others_go_on(furnished: Host) -> None:
    calls = [
        add(furnished, "c", sources="10.0.0.3"),
        add(furnished, "c", sources="10.0.0.8"),
        delete(furnished, "missing"),
        delete(furnished, "c"),
        add(furnished, "c", sources="10.0.0.8"),
        add(furnished, "c", sources="10.0.0.8"),
    ]
    outcomes = furnished.firewall.together(calls)
    assert errors(outcomes) == [None, AlreadyExists, NotFound, None, None, None]
    assert [each.value[1] for each in outcomes[4:]] == [True, False]  # type: ignore[index]
    assert furnished.ids()[-1] == "c" and len(furnished.kernel.entries) == 3


@pytest.mark.parametrize("at", range(7))
def test_a_kernel_that_refuses_one_of_a_group_refuses_only_that(furnished: Host, at: int) -> None:
    calls = a_group(furnished)

    def refused() -> object:
        furnished.kernel.refuse["apply"] = errno.ENOMEM
        try:
            return furnished.firewall.add(furnished.rule("refused", sources="10.7.7.7"))
        finally:
            furnished.kernel.refuse.clear()

    outcomes = furnished.firewall.together([*calls[:at], refused, *calls[at:]])
    assert [each for each in errors(outcomes) if each] == [KernelRefused]
    assert furnished.ids() == ["b", "below", "policy", "c", "first", "off"]
    before = furnished.state()
    furnished.kill()
    furnished.start()
    assert furnished.state() == before


@pytest.mark.parametrize("count", range(1, 8))
def test_a_commit_that_fails_takes_all_back_and_refuses_all(furnished: Host, count: int) -> None:
    before = furnished.state()
    calls = [*a_group(furnished)[:count], delete(furnished, "missing")]
    with fail_on(furnished.firewall._store, "COMMIT"):
        outcomes = furnished.firewall.together(calls)
    assert errors(outcomes) == [StoreFailed] * (count + 1)
    assert furnished.state() == before
    wait_for(lambda: furnished.firewall.not_ready() == [])  # it found that the store can be written
    assert [furnished.packets(each) for each in ("a", "b", "policy")] == [5, 7, 6]
    assert furnished.firewall.last_error and "COMMIT" not in furnished.firewall.last_error
    # What was owed is saved with the next change, once.
    for _ in range(2):
        furnished.firewall.add(furnished.rule("next", sources="10.9.9.9"))
        assert [furnished.packets(each) for each in ("a", "b", "policy")] == [5, 7, 6]
        furnished.stop()
        furnished.start()
        assert [furnished.packets(each) for each in ("a", "b", "policy", "next")] == [5, 7, 6, 0]


@pytest.mark.parametrize("statement", ["SAVEPOINT", "UPDATE meta"])
def test_a_statement_that_fails_refuses_the_changes_that_need_it(furnished: Host, statement: str) -> None:
    before = furnished.state()
    with fail_on(furnished.firewall._store, statement):
        outcomes = furnished.firewall.together(a_group(furnished)[1:3])
    assert errors(outcomes) == [StoreFailed, StoreFailed]
    assert furnished.state() == before


@pytest.mark.parametrize("statement", ["DELETE FROM rules", "INSERT OR REPLACE", "INSERT INTO hits"])
def test_a_statement_that_fails_leaves_the_changes_that_do_without_it(
    furnished: Host, statement: str
) -> None:
    with fail_on(furnished.firewall._store, statement):
        outcomes = furnished.firewall.together(a_group(furnished)[1:3])
    if statement == "DELETE FROM rules":
        assert errors(outcomes) == [None, StoreFailed]
        assert furnished.ids() == ["a", "b", "below", "policy"] and furnished.packets("a") == 5
        return
    # Only the first has something to write, and hits to save.
    assert errors(outcomes) == [StoreFailed, None]
    assert furnished.ids() == ["b", "below", "policy"] and furnished.packets("b") == 7


@pytest.mark.parametrize("statement", ["RELEASE", "ROLLBACK TO"])
def test_a_database_that_loses_the_transaction_refuses_all_of_it(
    furnished: Host, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, apply = furnished.state(), furnished.kernel.apply

    def refuses_once(_: Change) -> dict[int, Hits]:
        monkeypatch.setattr(furnished.kernel, "apply", apply)
        raise kernel_refused("applying", errno.ENOMEM)

    def breaks() -> object:
        with fail_on(furnished.firewall._store, statement):
            if statement == "ROLLBACK TO":
                monkeypatch.setattr(furnished.kernel, "apply", refuses_once)
            return furnished.firewall.delete("b")

    calls = [add(furnished, "c", sources="10.0.0.3"), delete(furnished, "a"), breaks]
    outcomes = furnished.firewall.together(calls)
    assert all(isinstance(each.error, StoreFailed) for each in outcomes)
    assert furnished.state() == before
    assert [furnished.packets(each) for each in ("a", "b", "policy")] == [5, 7, 6]


def test_a_begin_that_fails_refuses_each(furnished: Host) -> None:
    before = furnished.state()
    with fail_on(furnished.firewall._store, "BEGIN"):
        outcomes = furnished.firewall.together(a_group(furnished)[:3])
    assert errors(outcomes) == [StoreFailed] * 3
    assert furnished.state() == before


def test_a_change_of_the_policy_ends_the_group_before_it(furnished: Host) -> None:
    found = commits(furnished)
    calls = [
        add(furnished, "c", sources="10.0.0.3"),
        add(furnished, "d", sources="10.0.0.4"),
        add(furnished, "p", destination_ports=[81]),
        add(furnished, "e", sources="10.0.0.5"),
        lambda: furnished.firewall.attach("eth0", "auto", True, True),
        lambda: furnished.firewall.batch([furnished.rule("f", sources="10.0.0.6")], ["c"]),
    ]
    outcomes = furnished.firewall.together(calls)
    assert errors(outcomes) == [None] * 6
    assert len(found) == 5
    assert furnished.ids()[-4:] == ["d", "p", "e", "f"]


def test_a_group_that_fails_before_a_change_of_the_policy_refuses_both(furnished: Host) -> None:
    before = furnished.state()
    calls = [add(furnished, "c", sources="10.0.0.3"), add(furnished, "p", destination_ports=[81])]
    with fail_on(furnished.firewall._store, "COMMIT"):
        outcomes = furnished.firewall.together(calls)
    assert errors(outcomes) == [StoreFailed, StoreFailed]
    assert furnished.state() == before


def test_nobody_sees_a_change_that_is_not_durable(furnished: Host) -> None:
    """Other threads, in the middle of a group: neither the rule, nor a page, nor the etag."""
    firewall = furnished.firewall
    seen: list[object] = []
    before = [firewall.etag(), firewall.count(), firewall.revision, len(furnished.ids())]

    def look() -> None:
        ids = [record.rule.id for record in firewall._store.loose()]
        seen.append([firewall.etag(), firewall.count(), firewall.revision, len(ids)])

    def from_another_thread() -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(5)

    outcomes = firewall.together([add(furnished, "c", sources="10.0.0.3"), from_another_thread])
    assert errors(outcomes) == [None, None]
    assert seen == [before]
    assert firewall.count() == before[1] + 1  # type: ignore[operator]


# --- the kernel that does not take a change back


@pytest.mark.parametrize("is_group", [True, False])
def test_maps_that_may_differ_are_told_and_mended_before_anything_else(
    furnished: Host, is_group: bool
) -> None:
    before = furnished.state()
    calls = [delete(furnished, "b"), delete(furnished, "a")]
    furnished.kernel.calls, furnished.kernel.after = 0, len(calls) if is_group else 1
    furnished.kernel.refuse |= {"apply": errno.ENOMEM, "reconcile": errno.ENOMEM}
    with fail_on(furnished.firewall._store, "COMMIT"):
        if is_group:
            assert errors(furnished.firewall.together(calls)) == [StoreFailed, StoreFailed]
        else:
            with pytest.raises(StoreFailed):
                calls[0]()
        told, unwritable = furnished.firewall.not_ready()  # before the watch writes to the disk again
    assert "cannot be changed" in unwritable
    assert told.startswith("the maps may differ from the rules") and "ENOMEM" in told
    status = furnished.firewall.status()
    assert status.drift == (told,) and not status.ready and status.last_error
    with pytest.raises(KernelRefused):
        furnished.firewall.add(furnished.rule("x", sources="10.8.8.8"))
    assert furnished.ids() == ["a", "b", "below", "policy"]
    furnished.kernel.refuse.clear()
    wait_for(lambda: not furnished.firewall.not_ready())
    assert furnished.state() == before
    assert [furnished.packets(each) for each in ("a", "b", "policy")] == [5, 7, 6]


# --- a rule whose time has come


def test_a_rule_in_the_place_of_one_that_is_over_is_new(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add("a", sources="10.0.0.1", ttl=10)
    host.add("b", sources="10.0.0.2", ttl=10)
    host.add("c", sources="10.0.0.3", ttl=10)
    host.hit("10.0.0.1", 5)
    old = {each: host.handle(each) for each in "abc"}
    with host.firewall._lock:  # nobody sweeps meanwhile
        host.now += 11
        _, is_new = host.firewall.add(host.rule("a", sources="10.0.0.1", ttl=10))
        assert is_new and host.packets("a") == 0
        outcome = host.firewall.batch([host.rule("b", sources="10.0.0.9", ttl=10)], [])
        assert (outcome.added, outcome.deleted, outcome.unchanged) == (1, 0, 0)
        rules = [host.rule(each, sources=f"10.0.0.{n}", ttl=10) for n, each in ((1, "a"), (9, "b"), (3, "c"))]
        replaced = host.firewall.replace_all(rules, None)
        assert (replaced.added, replaced.unchanged) == (1, 2)
    wait_for(lambda: not host.firewall._store.expired(host.now, 1))
    assert sorted(host.ids()) == ["a", "b", "c"]
    assert all(host.handle(each) > old[each] for each in "abc")


# --- status while a change is long


def test_the_status_is_told_while_a_change_holds_the_lock(host: Host) -> None:
    host.add("a", sources="10.0.0.1")
    fills = host.firewall.fills()
    done, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        done.wait(10)

    thread = threading.Thread(target=lambda: host.firewall.together([hold]))
    thread.start()
    begun.wait(5)
    try:
        assert host.firewall.not_ready() == [] and host.firewall.status().ready
        assert host.firewall.fills() == fills and host.firewall.counters() == []
        assert thread.is_alive()
    finally:
        done.set()
        thread.join()


# --- many threads against a model


def test_many_clients_at_once_leave_what_each_was_told(host: Host) -> None:
    """Each owns its ids and its addresses; commits fail now and then. What was answered is what is there."""
    told: dict[str, str] = {}
    failures: list[BaseException] = []
    waiting: list[tuple[Call, list[Outcome], threading.Event]] = []
    guard, stop = threading.Lock(), threading.Event()

    def ask(call: Call) -> Outcome:
        answer: list[Outcome] = []
        answered = threading.Event()
        with guard:
            waiting.append((call, answer, answered))
        assert answered.wait(20)
        return answer[0]

    def write() -> None:
        dice = random.Random(5)
        while not stop.is_set():
            with guard:
                taken, waiting[:] = waiting[:], []
            statement = dice.choice(["COMMIT", "INSERT OR REPLACE", "", "", "", ""])
            with fail_on(host.firewall._store, statement or "nothing"):
                outcomes = host.firewall.together([call for call, _, _ in taken])
            for (_, answer, answered), outcome in zip(taken, outcomes, strict=True):
                answer.append(outcome)
                answered.set()

    def client(number: int) -> None:
        dice, mine = random.Random(number), dict[str, str]()
        try:
            for _ in range(60):
                rule_id, source = f"{number}-{dice.randrange(4)}", f"10.{number}.0.{dice.randrange(6)}"
                if rule_id not in mine:
                    call = add(host, rule_id, sources=source)
                elif dice.random() < 0.5:
                    call = put(host, rule_id, sources=source)
                else:
                    call, source = delete(host, rule_id), ""
                outcome = ask(call)
                assert outcome.error is None or isinstance(outcome.error, StoreFailed)
                if outcome.error is None:
                    mine[rule_id] = source
                    if not source:
                        del mine[rule_id]
            told.update(mine)
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in (writer, *clients):
        thread.start()
    for thread in clients:
        thread.join()
    stop.set()
    writer.join()
    assert not failures
    stored = {each.id: each.fields()["sources"] for each in host.firewall.export()[0]}
    assert stored == {rule_id: [source] for rule_id, source in told.items()}
    assert {record.handle for record in host.firewall._store.all()} >= host.handles_in_kernel()
    assert len(host.kernel.entries) == len(set(told.values()))
    before = host.state()
    host.kill()
    host.start()
    assert host.state() == before
