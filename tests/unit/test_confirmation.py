"""Changes that go unless they are confirmed: their way back, in store and kernel, whatever happens between."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from firewall.address_list import parse_list
from firewall.caution import Caution
from firewall.deadlines import next_due
from firewall.errors import Conflict, KernelRefused, NotFound, StoreFailed, TableFull
from tests import random_rules
from tests.unit.failing_database import fail_on
from tests.unit.host import Host, wait_for

LIST = "\n".join(f"192.0.2.{number}" for number in range(50)) + "\n2001:db8::1\n"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that only goes forward, of this boot."""
    clock = Clock()
    monkeypatch.setattr("firewall.enforcer.Enforcer._steady", staticmethod(clock))
    return clock


def unconfirmed(host: Host, call: Callable[[], Any], seconds: int = 60) -> int:
    done = host.firewall.cautiously(Caution("a change", seconds), call)
    assert done.pending is not None
    return done.pending.id


def tried(host: Host, call: Callable[[], Any], **asked: Any) -> Any:
    return host.firewall.cautiously(Caution("a change", **asked), call)


def add(host: Host, rule_id: str, **fields: Any) -> Callable[[], Any]:
    return lambda: host.firewall.add(host.rule(rule_id, **fields))


def import_list(host: Host, text: str = LIST, priority: int = 1000) -> Callable[[], Any]:
    return lambda: host.firewall.import_list(parse_list(text), "drop", priority, "ingress")


def content(host: Host) -> dict[str, Any]:
    """What a rollback brings back; revisions and history go on."""
    state = host.state()
    names = ("entries", "occupancy", "hooks", "rules", "interfaces", "fills")
    policy = host.kernel.policy
    assert policy is not None
    ranks = [
        sorted((int(r["handle"]), int(r["rank"])) for r in each.rules if r["handle"]) for each in policy.hooks
    ]
    with sqlite3.connect(host.database) as connection:
        rows = {
            table: sorted(connection.execute(f"SELECT * FROM {table}"))
            for table in ("rules", "blocks", "gone", "interfaces", "hits", "resets")
        }
    connection.close()
    return {**{name: state[name] for name in names}, "policy": ranks, "rows": rows}


@pytest.fixture
def furnished(host: Host, steady: Clock) -> Host:
    host.add("a", sources="10.0.0.1")
    host.add("below", sources="10.0.0.1", action="allow")
    host.add("web", destination_ports=[80])
    host.add("off", sources="10.0.0.9", enabled=False)
    import_list(host)()
    return host


def imported(host: Host, number: int) -> str:
    return next(each.id for each in host.firewall.export()[0] if each.id.endswith(f"-{number}"))


CHANGES: dict[str, Callable[[Host], Any]] = {
    "an address rule comes": lambda host: add(host, "new", sources="10.0.0.2")(),
    "an address rule beats another": lambda host: add(host, "new", sources="10.0.0.1", priority=1)(),
    "a policy rule comes": lambda host: add(host, "new", protocols=["tcp"])(),
    "a rule goes": lambda host: host.firewall.delete("a"),
    "a policy rule goes": lambda host: host.firewall.delete("web"),
    "a rule changes": lambda host: host.firewall.replace(host.rule("a", sources="10.0.0.3")),
    "a rule changes over to the policy": lambda host: host.firewall.replace(
        host.rule("a", protocols=["udp"])
    ),
    "a rule changes over to the tables": lambda host: host.firewall.replace(
        host.rule("web", sources="10.0.0.4")
    ),
    "a rule is disabled": lambda host: host.firewall.replace(
        host.rule("a", sources="10.0.0.1", enabled=False)
    ),
    "a rule is enabled": lambda host: host.firewall.replace(host.rule("off", sources="10.0.0.9")),
    "a batch": lambda host: host.firewall.batch(
        [host.rule("a", sources="10.0.0.7"), host.rule("n", protocols=[47])], ["a", "web", imported(host, 3)]
    ),
    "all go": lambda host: host.firewall.replace_all([], None),
    "others come in the place of all": lambda host: host.firewall.replace_all(
        [host.rule("a", sources="10.0.0.1", priority=7), host.rule("n", protocols=[47])], None
    ),
    "a list is imported": lambda host: import_list(host, "198.51.100.0/24\n10.0.0.1\n192.0.2.7\n", 500)(),
    "an imported rule goes": lambda host: host.firewall.delete(imported(host, 5)),
    "an imported rule changes": lambda host: host.firewall.replace(
        host.rule(imported(host, 5), protocols=["tcp"])
    ),
    "an interface is protected": lambda host: host.firewall.attach("eth0", "auto", True, True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_rollback_brings_everything_back_as_it_was(furnished: Host, what: str) -> None:
    before = content(furnished)
    unconfirmed(furnished, lambda: CHANGES[what](furnished))
    assert content(furnished) != before
    ended = furnished.firewall.roll_back()
    assert [each.state for each in ended] == ["rolled_back"]
    assert content(furnished) == before


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_the_same_with_and_without_a_confirmation(
    furnished: Host, what: str, steady: Clock
) -> None:
    unconfirmed(furnished, lambda: CHANGES[what](furnished))
    during = content(furnished)
    furnished.firewall.confirm()
    assert content(furnished) == during
    steady.now += 1000
    furnished.kernel.wake()
    furnished.firewall._roll_back_overdue()
    assert content(furnished) == during


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_that_ran_out_while_the_service_was_away_is_taken_back_at_the_start(
    furnished: Host, what: str, steady: Clock
) -> None:
    before = content(furnished)
    unconfirmed(furnished, lambda: CHANGES[what](furnished))
    furnished.kill()
    steady.now += 61
    furnished.start()
    assert content(furnished) == before
    assert [each.reason for each in furnished.firewall.changes()] == ["it was not confirmed in time"]


def test_a_reboot_brings_the_old_rules_back_at_once(furnished: Host) -> None:
    before = content(furnished)
    unconfirmed(furnished, CHANGES["all go"].__get__(furnished))
    furnished.kill()
    furnished.kernel.boot = "second"
    furnished.start()
    assert content(furnished) == before
    assert furnished.firewall.changes()[0].reason == "the host went down before it was confirmed"


def test_a_change_that_has_time_left_goes_on_waiting_after_a_restart(furnished: Host, steady: Clock) -> None:
    before = content(furnished)
    change = unconfirmed(furnished, add(furnished, "new", sources="10.0.0.2"))
    furnished.kill()
    steady.now += 30
    furnished.now += 10_000_000  # the clock of the wall may say what it likes
    furnished.start()
    assert "new" in furnished.ids() and furnished.firewall.waiting() == 1
    assert furnished.firewall.changes()[0].seconds_left == 30
    with pytest.raises(Conflict, match=f"change {change}"):
        tried(furnished, lambda: furnished.firewall.delete("new"))
    steady.now += 31
    wait_for(lambda: furnished.firewall.waiting() == 0)
    assert content(furnished) == before


def test_the_running_service_takes_back_what_ran_out(furnished: Host, steady: Clock) -> None:
    before = content(furnished)
    unconfirmed(furnished, add(furnished, "new", sources="10.0.0.2"))
    steady.now += 59
    furnished.kernel.wake()
    assert furnished.firewall.waiting() == 1
    steady.now += 1
    wait_for(lambda: furnished.firewall.waiting() == 0)
    assert content(furnished) == before


def test_before_an_end_that_leaves_nobody_everything_that_waits_is_taken_back(
    furnished: Host, steady: Clock
) -> None:
    before = content(furnished)
    for name, address in (("new", "10.0.0.2"), ("newer", "10.0.0.3")):
        unconfirmed(furnished, add(furnished, name, sources=address), 600)
    furnished.firewall.panic_on(600)
    furnished.firewall.end_what_waits()
    assert furnished.firewall.waiting() == 0
    assert not furnished.firewall.panic().on
    assert content(furnished) == before
    assert {each.reason for each in furnished.firewall.changes()} == {
        "the service was stopped before it was confirmed"
    }


def test_what_cannot_be_taken_back_then_goes_on_waiting(furnished: Host, steady: Clock) -> None:
    unconfirmed(furnished, add(furnished, "new", sources="10.0.0.2"), 600)
    furnished.kernel.fail_next = 12
    furnished.firewall.end_what_waits()
    assert furnished.firewall.waiting() == 1


def test_what_a_rule_counted_comes_back_with_it(furnished: Host) -> None:
    furnished.hit("10.0.0.1", 5)
    furnished.hit_policy("web", 7)
    unconfirmed(furnished, lambda: furnished.firewall.batch([], ["a", "web"]))
    furnished.firewall.roll_back()
    assert [furnished.packets(each) for each in ("a", "web")] == [5, 7]
    furnished.hit_policy("web", 1)
    assert furnished.packets("web") == 8


def test_a_reset_of_its_counters_comes_back_with_a_rule(furnished: Host) -> None:
    furnished.hit("10.0.0.1", 5)
    furnished.firewall.reset_counters("a")
    furnished.hit("10.0.0.1", 2)
    unconfirmed(furnished, lambda: furnished.firewall.delete("a"))
    furnished.firewall.roll_back()
    assert furnished.packets("a") == 2


def test_a_confirmed_deletion_forgets_what_was_counted(furnished: Host) -> None:
    furnished.hit("10.0.0.1", 5)
    furnished.hit_policy("web", 7)
    unconfirmed(furnished, lambda: furnished.firewall.batch([], ["a", "web"]))
    furnished.firewall.confirm()
    assert content(furnished)["rows"]["hits"] == []


def test_nothing_else_changes_what_waits_and_everything_else_may_change(furnished: Host) -> None:
    change = unconfirmed(
        furnished, lambda: furnished.firewall.batch([furnished.rule("new", sources="10.0.0.2")], ["web"])
    )
    for call in (
        lambda: furnished.firewall.delete("new"),
        lambda: furnished.firewall.replace(furnished.rule("new", sources="10.0.0.3")),
        add(furnished, "web", destination_ports=[81]),
        lambda: furnished.firewall.replace_all([], None),
    ):
        with pytest.raises(Conflict) as refusal:
            tried(furnished, call)
        assert refusal.value.code == "change_pending" and f"id={change}" in refusal.value.hint
    tried(furnished, add(furnished, "other", sources="10.0.0.5"))
    tried(furnished, lambda: furnished.firewall.delete("a"))
    furnished.firewall.roll_back()
    assert {"other", "web"} <= set(furnished.ids()) and not {"new", "a"} & set(furnished.ids())


def test_an_interface_that_waits_is_left_alone(furnished: Host) -> None:
    unconfirmed(furnished, lambda: furnished.firewall.attach("eth0", "auto", True, True))
    with pytest.raises(Conflict, match="interface 'eth0'"):
        tried(furnished, lambda: furnished.firewall.detach("eth0"))
    tried(furnished, lambda: furnished.firewall.attach("eth1", "auto", True, True))
    furnished.firewall.roll_back()
    assert furnished.kernel.on("eth0") == {} and set(furnished.kernel.on("eth1")) == {"ingress", "egress"}


def test_a_detached_interface_is_attached_again(furnished: Host) -> None:
    furnished.firewall.attach("eth0", "generic", True, False)
    before = content(furnished)
    unconfirmed(furnished, lambda: furnished.firewall.detach("eth0"))
    assert furnished.kernel.on("eth0") == {}
    furnished.firewall.roll_back()
    assert furnished.kernel.on("eth0") == {"ingress": "generic"} and content(furnished) == before


def test_several_changes_wait_each_for_itself(furnished: Host) -> None:
    first = unconfirmed(furnished, add(furnished, "one", sources="10.0.0.2"), 100)
    second = unconfirmed(furnished, add(furnished, "two", sources="10.0.0.3"), 50)
    third = unconfirmed(furnished, add(furnished, "three", sources="10.0.0.4"), 70)
    assert [each.id for each in furnished.firewall.changes()] == [third, second, first]
    furnished.firewall.roll_back(second)
    furnished.firewall.confirm(first)
    assert {"one", "three"} <= set(furnished.ids()) and "two" not in furnished.ids()
    assert next_due(furnished.database, "first") == pytest.approx(1070)
    assert next_due(furnished.database, "second") == 0
    furnished.firewall.roll_back()
    assert "three" not in furnished.ids() and next_due(furnished.database, "first") is None
    states = {each.id: each.state for each in furnished.firewall.changes()}
    assert states == {first: "confirmed", second: "rolled_back", third: "rolled_back"}


def test_without_anything_that_waits_there_is_nothing_to_confirm(furnished: Host) -> None:
    for call in (
        furnished.firewall.confirm,
        furnished.firewall.roll_back,
        lambda: furnished.firewall.confirm(7),
    ):
        with pytest.raises(NotFound) as refusal:
            call()
        assert refusal.value.code == "change_not_found"


def test_what_ended_is_told_for_a_while(furnished: Host) -> None:
    for number in range(25):
        unconfirmed(furnished, add(furnished, f"r{number}", sources=f"10.1.0.{number}"))
        furnished.firewall.confirm()
    assert [each.id for each in furnished.firewall.changes()] == list(range(25, 5, -1))
    view = furnished.firewall.changes()[0]
    assert (view.what, view.added, view.removed, view.changed) == ("a change", 1, 0, 0)


def test_the_room_of_policy_rules_that_may_come_back_is_kept(idle_host: Host, steady: Clock) -> None:
    host = idle_host
    host.start(bpf={"max_rules": 2})
    host.add("one", protocols=[1])
    host.add("two", protocols=[2])
    unconfirmed(host, lambda: host.firewall.delete("one"))
    with pytest.raises(TableFull):
        tried(host, add(host, "three", protocols=[3]))
    tried(host, lambda: host.firewall.replace(host.rule("two", protocols=[4])))
    host.firewall.roll_back()
    assert set(host.ids()) == {"one", "two"}


@pytest.mark.parametrize("what", CHANGES)
def test_a_rollback_that_the_kernel_or_the_disk_refuses_leaves_the_change_waiting(
    furnished: Host, what: str
) -> None:
    before = content(furnished)
    unconfirmed(furnished, lambda: CHANGES[what](furnished))
    during = content(furnished)
    furnished.kernel.refuse["apply"] = 28
    with pytest.raises(KernelRefused):
        furnished.firewall.roll_back()
    furnished.kernel.refuse.clear()
    assert content(furnished) == during and furnished.firewall.waiting() == 1
    with fail_on(furnished.firewall._store, "COMMIT"), pytest.raises(StoreFailed):
        furnished.firewall.roll_back()
    assert content(furnished) == during and furnished.firewall.waiting() == 1
    furnished.firewall.roll_back()
    assert content(furnished) == before


def test_a_change_that_fails_waits_for_nothing(furnished: Host) -> None:
    before = furnished.state()
    with fail_on(furnished.firewall._store, "COMMIT"), pytest.raises(StoreFailed):
        unconfirmed(furnished, add(furnished, "new", sources="10.0.0.2"))
    furnished.kernel.refuse["apply"] = 28
    with pytest.raises(KernelRefused):
        unconfirmed(furnished, add(furnished, "new", sources="10.0.0.2"))
    furnished.kernel.refuse.clear()
    assert furnished.state() == before and furnished.firewall.waiting() == 0


def test_a_rule_that_expires_while_it_waits_is_no_trouble(furnished: Host) -> None:
    unconfirmed(furnished, add(furnished, "short", sources="10.0.0.2", ttl=5))
    unconfirmed(furnished, lambda: furnished.firewall.replace(furnished.rule("a", sources="10.0.0.8", ttl=5)))
    furnished.now += 6
    wait_for(lambda: "short" not in furnished.ids() and "a" not in furnished.ids())
    furnished.firewall.roll_back()
    assert "a" in furnished.ids() and "short" not in furnished.ids()
    assert str(furnished.firewall.rule("a").rule.sources[0]) == "10.0.0.1"


@pytest.mark.parametrize("seed", range(30))
def test_any_change_of_any_rules_comes_back(host: Host, steady: Clock, seed: int) -> None:
    rng = random.Random(seed)
    rules = [{k: v for k, v in each.items() if k != "id"} for each in random_rules.random_rules(rng, 40)]
    for number, fields in enumerate(rules[:20]):
        host.add(f"r{number}", **fields)
    import_list(host)()
    before = content(host)
    deletes = rng.sample(host.ids(), 12)
    changed = [host.rule(each, **rng.choice(rules)) for each in rng.sample(deletes, 6)]
    new = [host.rule(f"n{number}", **fields) for number, fields in enumerate(rules[20:])]
    unconfirmed(host, lambda: host.firewall.batch([*changed, *new], deletes))
    host.add("meanwhile", sources="10.9.9.9")
    if seed % 2:
        host.kill()
        host.start()
    host.firewall.roll_back()
    host.firewall.delete("meanwhile")
    assert content(host) == before
