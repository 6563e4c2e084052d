"""A change that fails anywhere leaves the store, the kernel and what is told as they were."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import pytest

from firewall.errors import FirewallError, KernelRefused, StoreFailed
from tests.unit.failing_database import fail_on
from tests.unit.host import Host, wait_for

Change = Callable[[Host], object]


def replaced(rule_id: str, **fields: object) -> Change:
    return lambda host: host.firewall.replace(host.rule(rule_id, **fields))


def added(**fields: object) -> Change:
    return lambda host: host.firewall.add(host.rule("new", **fields))


def batch(host: Host) -> object:
    adds = [host.rule("x", protocols="udp"), host.rule("y", sources=["10.0.0.1", "2001:db8::9"], priority=1)]
    return host.firewall.batch(adds, ["address", "policy"])


def replace_all(host: Host) -> object:
    rules = [host.rule("policy", protocols="udp"), host.rule("y", destinations="::/0"), host.rule("z")]
    return host.firewall.replace_all(rules, host.firewall.etag())


# Every kind of change of rules, on the rules of `furnished`.
CHANGES: dict[str, Change] = {
    "add an address": added(sources="10.0.0.9"),
    "add an address that another rule has": added(sources="10.0.0.1", priority=1),
    "add an address that loses": added(sources="10.0.0.1", priority=2000),
    "add addresses of both families and directions": added(
        sources=["10.9.0.0/16", "fe80::/10"], direction="both"
    ),
    "add a policy rule": added(destination_ports=[22]),
    "add a disabled rule": added(enabled=False),
    "edit an address": replaced("address", sources="10.0.0.2"),
    "edit a policy rule": replaced("policy", destination_ports=[81]),
    "edit a description": replaced("policy", destination_ports=[80], description="x"),
    "an address rule becomes policy": replaced("address", sources="10.0.0.1", protocols="tcp"),
    "a policy rule becomes an address": replaced("policy", sources="10.0.0.1", priority=1),
    "disable an address": replaced("address", sources="10.0.0.1", enabled=False),
    "disable a policy rule": replaced("policy", destination_ports=[80], enabled=False),
    "enable a rule": replaced("off", sources="10.0.0.7"),
    "delete an address": lambda host: host.firewall.delete("address"),
    "delete a policy rule": lambda host: host.firewall.delete("policy"),
    "delete a disabled rule": lambda host: host.firewall.delete("off"),
    "a batch": batch,
    "replace all": replace_all,
    "replace all by nothing": lambda host: host.firewall.replace_all([], None),
}
TOUCHING = [name for name in CHANGES if "disabled" not in name]
POLICY = [name for name in CHANGES if "policy" in name or name in ("a batch", "replace all")]
STATEMENTS = ("BEGIN", "DELETE FROM rules", "DELETE FROM hits", "INSERT OR REPLACE", "UPDATE meta", "COMMIT")


@pytest.fixture
def furnished(host: Host) -> Host:
    host.firewall.attach("eth0", "auto", True, True)
    host.add("address", sources="10.0.0.1")
    host.add("below", sources="10.0.0.1", action="allow")
    host.add("policy", destination_ports=[80])
    host.add("named", interfaces="eth*", protocols="udp")
    host.add("off", sources="10.0.0.7", enabled=False)
    host.hit("10.0.0.1", 5)
    host.hit_policy("policy", 6)
    return host


def fails_and_can_be_repeated(host: Host, change: Change, error: type[FirewallError]) -> None:
    """The caller makes it fail once; what makes it fail is taken away by `host.kernel.refuse.clear()`."""
    before = host.state()
    with pytest.raises(error) as raised:
        change(host)
    assert raised.value.detail
    assert host.state() == before
    assert host.firewall.last_error == str(raised.value)
    assert host.packets("policy") == 6
    host.kernel.refuse.clear()


@pytest.mark.parametrize("name", TOUCHING)
def test_a_kernel_that_refuses_a_change_keeps_all_as_it_was(furnished: Host, name: str) -> None:
    furnished.kernel.refuse["apply"] = errno.ENOMEM
    fails_and_can_be_repeated(furnished, CHANGES[name], KernelRefused)
    assert furnished.packets("address") == 5
    CHANGES[name](furnished)
    furnished.stop()
    furnished.start()


@pytest.mark.parametrize("name", TOUCHING)
def test_a_kernel_without_room_is_asked_before_anything_is_written(furnished: Host, name: str) -> None:
    furnished.kernel.refuse["reserve"] = errno.ENOMEM
    before, applied = furnished.state(), furnished.kernel.applied
    with pytest.raises(KernelRefused, match="ENOMEM"):
        CHANGES[name](furnished)
    assert furnished.state() == before and furnished.kernel.applied == applied
    furnished.kernel.refuse.clear()
    CHANGES[name](furnished)


@pytest.mark.parametrize("statement", ["DELETE FROM rules", "INSERT OR REPLACE", "BEGIN"])
def test_a_store_that_fails_before_the_kernel_is_asked_leaves_it_alone(
    furnished: Host, statement: str
) -> None:
    applied = furnished.kernel.applied
    with fail_on(furnished.firewall._store, statement):
        fails_and_can_be_repeated(furnished, batch, StoreFailed)
    assert furnished.kernel.applied == applied
    assert furnished.packets("address") == 5
    batch(furnished)


@pytest.mark.parametrize("statement", ["UPDATE meta", "COMMIT"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_cannot_become_durable_is_taken_back_in_the_kernel(
    furnished: Host, name: str, statement: str
) -> None:
    with fail_on(furnished.firewall._store, statement):
        fails_and_can_be_repeated(furnished, CHANGES[name], StoreFailed)
    CHANGES[name](furnished)
    furnished.stop()
    furnished.start()


def test_hits_that_cannot_be_saved_take_the_change_back(furnished: Host) -> None:
    with fail_on(furnished.firewall._store, "INSERT INTO hits"):
        fails_and_can_be_repeated(furnished, CHANGES["edit an address"], StoreFailed)
    CHANGES["edit an address"](furnished)


def test_a_counter_that_cannot_be_read_refuses_the_change(furnished: Host) -> None:
    before = furnished.state()
    furnished.kernel.refuse["policy_hits"] = errno.EIO
    with pytest.raises(KernelRefused):
        CHANGES["a policy rule becomes an address"](furnished)
    furnished.kernel.refuse.clear()
    assert furnished.state() == before


@pytest.mark.parametrize("name", POLICY)
def test_after_many_failures_no_slot_is_lost(furnished: Host, name: str) -> None:
    for _ in range(3):
        furnished.kernel.refuse["apply"] = errno.ENOMEM
        with pytest.raises(KernelRefused):
            CHANGES[name](furnished)
        furnished.kernel.refuse.clear()
        with fail_on(furnished.firewall._store, "COMMIT"), pytest.raises(StoreFailed):
            CHANGES[name](furnished)
    CHANGES[name](furnished)
    policy = furnished.kernel.policy
    assert policy is not None
    for image in policy.hooks:
        slots = image.rules["slot"][image.rules["handle"] != 0].tolist()
        assert len(set(slots)) == len(slots)


# --- expiry


def test_an_expiry_that_the_kernel_refuses_is_tried_again_without_a_hot_loop(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firewall.enforcer._WATCH_S", 0.05)
    host.add("a", sources="10.0.0.1", ttl=10)
    host.kernel.refuse["apply"] = errno.ENOMEM
    host.now += 11
    wait_for(lambda: host.kernel.calls >= 6)
    assert host.ids() == ["a"] and host.handles_in_kernel()
    assert "ENOMEM" in (host.firewall.last_error or "")
    calls = host.kernel.calls
    time.sleep(0.4)
    assert host.kernel.calls - calls <= 0.4 / 0.05 + 1
    host.kernel.refuse.clear()
    wait_for(lambda: not host.ids())
    assert not host.handles_in_kernel()


def test_an_expiry_that_fails_does_not_keep_interfaces_from_being_protected(idle_host: Host) -> None:
    host = idle_host
    host.start(interfaces=[{"name": "late0"}])
    host.add("a", sources="10.0.0.1", ttl=10)
    host.kernel.refuse["apply"] = errno.ENOMEM
    host.now += 11
    wait_for(lambda: host.kernel.calls)
    host.kernel.add_link("late0", 9)
    wait_for(lambda: host.kernel.on("late0") == {"ingress": "native", "egress": "clsact"})


# --- interfaces


@pytest.mark.parametrize("hook", [0, 1])
def test_an_interface_that_refuses_a_hook_is_left_as_it_was(furnished: Host, hook: int) -> None:
    before = furnished.state()
    furnished.kernel.refuse["attach"], furnished.kernel.after = errno.EPERM, hook
    with pytest.raises(KernelRefused, match="EPERM"):
        furnished.firewall.attach("eth1", "native", True, True)
    furnished.kernel.refuse.clear()
    assert furnished.state() == before
    furnished.firewall.attach("eth1", "native", True, True)


def test_an_interface_that_cannot_become_durable_is_let_go_of(furnished: Host) -> None:
    before = furnished.state()
    with fail_on(furnished.firewall._store, "COMMIT"), pytest.raises(StoreFailed):
        furnished.firewall.attach("eth1", "auto", True, True)
    assert furnished.state() == before
    furnished.firewall.attach("eth1", "auto", True, True)


@pytest.mark.parametrize("statement", ["COMMIT", "INSERT INTO interfaces"])
def test_another_mode_that_cannot_become_durable_is_taken_back(furnished: Host, statement: str) -> None:
    before = furnished.state()
    with fail_on(furnished.firewall._store, statement), pytest.raises(StoreFailed):
        furnished.firewall.attach("eth0", "generic", True, False)
    assert furnished.state() == before


@pytest.mark.parametrize("call", [0, 1])
def test_an_interface_that_cannot_be_detached_stays_protected(furnished: Host, call: int) -> None:
    before = furnished.state()
    furnished.kernel.refuse["detach"], furnished.kernel.after = errno.EPERM, call
    with pytest.raises(KernelRefused, match="EPERM"):
        furnished.firewall.detach("eth0")
    furnished.kernel.refuse.clear()
    assert furnished.state() == before
    assert furnished.firewall.not_ready() == []
    furnished.firewall.detach("eth0")


@pytest.mark.parametrize("statement", ["COMMIT", "DELETE FROM interfaces", "INSERT INTO interface_hits"])
def test_a_detach_that_cannot_become_durable_is_taken_back(furnished: Host, statement: str) -> None:
    before = furnished.state()
    with fail_on(furnished.firewall._store, statement), pytest.raises(StoreFailed):
        furnished.firewall.detach("eth0")
    assert furnished.state() == before
    assert furnished.firewall.not_ready() == []


def test_a_kernel_that_refuses_the_rules_of_an_interface_does_not_attach_it(furnished: Host) -> None:
    before = furnished.state()
    furnished.kernel.refuse["apply"] = errno.ENOMEM
    with pytest.raises(KernelRefused):
        furnished.firewall.attach("eth1", "auto", True, True)
    furnished.kernel.refuse.clear()
    assert furnished.state() == before


# --- stopping and starting


@pytest.mark.parametrize("method", ["detach", "policy_hits", "stop"])
def test_a_stop_goes_on_after_a_refusal(furnished: Host, method: str) -> None:
    furnished.firewall.attach("eth1", "auto", True, True)
    furnished.kernel.refuse[method] = errno.EPERM
    furnished.kernel.after = 0 if method != "detach" else 1
    with pytest.raises(KernelRefused):
        furnished.stop()
    furnished.kernel.refuse.clear()
    assert len(furnished.kernel.hooks) == (0 if method != "detach" else 3)
    assert furnished.kernel.is_pinned == (method == "stop")
    furnished._running = None
    furnished.start()
    assert len(furnished.kernel.hooks) == 4
    assert furnished.firewall.not_ready() == []


@pytest.mark.parametrize("method", ["start", "reserve", "reconcile"])
def test_a_start_that_the_kernel_refuses_names_it_and_can_be_repeated(idle_host: Host, method: str) -> None:
    host = idle_host
    host.start()
    host.add("a", sources="10.0.0.1")
    host.stop()
    host.kernel.refuse[method] = errno.EPERM
    with pytest.raises(KernelRefused, match="EPERM"):
        host.start()
    assert host.firewall.not_ready() == ["starting"]
    host.stop()
    host.kernel.refuse.clear()
    host.start()
    assert host.handles_in_kernel() == {host.handle("a")}
