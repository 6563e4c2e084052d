"""The enforcer over time: restarts, being killed, expiry by the clock, counters, its status."""

from __future__ import annotations

import errno
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firewall.errors import FirewallError
from firewall.hits import InterfaceHits
from firewall.in_force import Manner
from firewall.settings import Interface
from tests.unit.host import NOW, Host, wait_for

WEB = {"destination_ports": [80]}
HOST_RULE = {"sources": "10.0.0.1"}


def counted(host: Host) -> dict[tuple[str, str, str, str], int]:
    return {
        (each.hook, each.interface, each.verdict, each.reason): each.packets
        for each in host.firewall.counters()
    }


# --- restarts


def test_a_stop_leaves_nothing_on_the_host_and_a_start_brings_all_back(host: Host) -> None:
    host.firewall.attach("eth0", "generic", True, False)
    host.add("a", **HOST_RULE)
    host.add("b", **WEB, labels={"team": "web"})
    host.add("c", protocols="udp", enabled=False)
    before = host.state()
    host.stop()
    assert not host.kernel.hooks and not host.kernel.is_pinned
    host.start()
    after = host.state()
    assert after == before


def test_a_stop_that_keeps_the_filters_leaves_them_and_a_start_goes_on(host: Host) -> None:
    host.firewall.attach("eth0", "generic", True, True)
    host.add("a", **HOST_RULE)
    host.add("b", **WEB)
    host.hit("10.0.0.1", 5)
    host.hit_policy("b", 6)
    before = host.state()
    host.stop(keep=True)
    assert host.kernel.on("eth0") == {"ingress": "generic", "egress": "clsact"} and host.kernel.entries
    host.hit("10.0.0.1", 2)
    host.start()
    assert (host.packets("a"), host.packets("b")) == (7, 6)
    after = host.state()
    assert {**after, "interfaces": None} == {**before, "interfaces": None}


def test_a_start_detaches_from_interfaces_that_nobody_asks_for_any_more(host: Host) -> None:
    host.stop()
    host.start(interfaces=[{"name": "eth0"}, {"name": "eth1"}])
    host.stop(keep=True)
    host.start(interfaces=[{"name": "eth1", "egress": False}])
    assert host.kernel.on("eth0") == {} and host.kernel.on("eth1") == {"ingress": "native"}


@pytest.mark.parametrize("refuses", [False, True])
def test_another_config_is_in_force_without_a_restart_or_not_at_all(host: Host, refuses: bool) -> None:
    host.stop()
    host.start(interfaces=[{"name": "eth0"}, {"name": "eth1"}])
    host.add("b", **WEB, interfaces=["eth*"])
    about = replace(host.firewall._about, default_ingress="drop")
    wanted = [Interface(name="eth1", mode="generic"), Interface(name="wg*")]
    before, options = host.state(), host.firewall._options
    if refuses:
        host.kernel.refuse["apply"] = errno.ENOMEM
        with pytest.raises(FirewallError):
            host.firewall.reload(about, Manner((1, 0), True), wanted)
        assert host.state() == before and host.kernel.options == options != (1, 0)
        return
    host.firewall.reload(about, Manner((1, 0), True), wanted)
    assert host.kernel.options == (1, 0)
    assert host.firewall.status().default_ingress == "drop"
    assert host.kernel.on("eth0") == {}
    assert host.kernel.on("eth1") == {"ingress": "generic", "egress": "clsact"}
    assert host.kernel.on("wg0") != {}
    assert set(host.kernel.counted) == {3, 4}
    policy = host.kernel.policy
    assert policy is not None and set(policy.hooks[0].interfaces) == {3}


def test_a_service_that_was_killed_leaves_the_filters_and_finds_them_again(host: Host) -> None:
    host.firewall.attach("eth0", "auto", True, True)
    host.add("a", **HOST_RULE)
    host.add("b", **WEB)
    host.hit("10.0.0.1", 5)
    host.hit_policy("b", 6)
    before = host.state()
    host.kill()
    assert host.kernel.on("eth0") == {"ingress": "native", "egress": "clsact"} and host.kernel.entries
    host.start()
    assert host.state() == before
    assert (host.packets("a"), host.packets("b")) == (5, 6)


def test_what_the_maps_hold_beyond_the_store_goes_at_the_start(host: Host, directory: Path) -> None:
    """Killed after the kernel had a change and before it was durable."""
    host.add("kept", **HOST_RULE)
    host.add("old", **WEB)
    with sqlite3.connect(host.database) as now, sqlite3.connect(directory / "earlier.db") as earlier:
        now.backup(earlier)
    host.add("a", sources="10.0.0.9")
    host.add("b", protocols="udp")
    host.firewall.delete("old")
    host.kill()
    for path in host.database.parent.iterdir():
        path.unlink()
    (directory / "earlier.db").rename(host.database)
    host.start()
    assert host.ids() == ["kept", "old"]
    assert host.handles_in_kernel() == {host.handle("kept"), host.handle("old")}
    host.add("c", protocols="sctp")
    assert host.packets("c") == 0


def test_a_start_takes_rules_as_they_were_whatever_the_config_is_now(host: Host) -> None:
    host.add("a", **HOST_RULE)
    host.stop()
    host.start(filter={"default_ingress": "drop"})
    assert host.ids() == ["a"] and host.firewall.status().default_ingress == "drop"


# --- expiry


@pytest.mark.parametrize("fields", [HOST_RULE, WEB, {**WEB, "enabled": False}])
def test_a_rule_goes_when_its_time_has_come_and_not_before(host: Host, fields: dict[str, Any]) -> None:
    host.add("stays", sources="10.0.0.9")
    host.add("later", **fields, ttl=20, priority=7)
    host.add("a", **fields, ttl=10)
    revision = host.firewall.revision
    host.now += 9.999
    threading.Event().wait(0.05)
    assert host.ids() == ["stays", "later", "a"]
    host.now = NOW + 10
    wait_for(lambda: host.ids() == ["stays", "later"])
    assert host.firewall.revision == revision + 1
    host.now = NOW + 20
    wait_for(lambda: host.ids() == ["stays"])
    wait_for(lambda: host.handles_in_kernel() == {host.handle("stays")})


def test_many_rules_that_expire_at_once_go_as_one_change(host: Host) -> None:
    host.firewall.batch([host.rule(f"r{n}", sources=f"10.0.{n}.1", ttl=10) for n in range(200)], [])
    applied, revision = host.kernel.applied, host.firewall.revision
    host.now += 11
    wait_for(lambda: not host.ids())
    assert (host.kernel.applied, host.firewall.revision) == (applied + 1, revision + 1)


def test_a_rule_whose_time_came_while_the_service_was_stopped_is_never_in_force(host: Host) -> None:
    host.add("a", **HOST_RULE, ttl=10)
    host.add("b", **WEB, ttl=30)
    handle = host.handle("b")
    host.stop()
    host.now += 11
    host.start()
    assert host.ids() == ["b"] and host.handles_in_kernel() == {handle}
    assert host.firewall.rule("b").rule.expires_at == NOW + 30


def test_a_ttl_that_is_put_again_starts_again(host: Host) -> None:
    host.add("a", **HOST_RULE, ttl=10)
    host.now += 9
    host.firewall.replace(host.rule("a", **HOST_RULE, ttl=10))
    host.now += 9
    threading.Event().wait(0.05)
    assert host.ids() == ["a"]
    host.firewall.replace(host.rule("a", **HOST_RULE))
    host.now += 100
    threading.Event().wait(0.05)
    assert host.ids() == ["a"]


# --- counters of rules


@pytest.mark.parametrize("rule_id", ["address", "policy"])
def test_what_a_rule_counted_is_saved_at_the_stop_and_goes_on_after_it(host: Host, rule_id: str) -> None:
    host.add("address", **HOST_RULE)
    host.add("policy", **WEB)

    def hit(packets: int) -> None:
        if rule_id == "address":
            host.hit("10.0.0.1", packets)
        else:
            host.hit_policy("policy", packets)

    hit(5)
    for total in (7, 9):
        host.stop()
        host.now += 1
        host.start()
        assert host.packets(rule_id) == total - 2
        hit(2)
        view = host.firewall.rule(rule_id)
        assert (view.packets, view.bytes, view.last_hit) == (total, 100 * total, host.now)


@pytest.mark.parametrize(
    "changes",
    [
        [{**HOST_RULE, "priority": 5}],
        [{"sources": "10.0.0.2"}, HOST_RULE],
        [WEB, HOST_RULE],
        [WEB, {**WEB, "priority": 5}, {**WEB, "enabled": False}, WEB],
        [{**HOST_RULE, "enabled": False}, HOST_RULE],
        [{**HOST_RULE, "protocols": "tcp"}, {"sources": ["10.0.0.1", "10.0.0.3"]}],
    ],
)
def test_a_rule_that_changes_keeps_what_it_counted(host: Host, changes: list[dict[str, Any]]) -> None:
    host.add("a", **HOST_RULE)
    host.hit("10.0.0.1", 5)
    total = 5
    for fields in changes:
        assert host.firewall.replace(host.rule("a", **fields)).packets == total
        rule = host.firewall.rule("a").rule
        if rule.enabled and rule.is_addresses_only:
            host.hit(str(rule.sources[0]), 3)
            total += 3
        elif rule.enabled:
            host.hit_policy("a", 3)
            total += 3
        assert host.packets("a") == total
    host.stop()
    host.start()
    assert host.packets("a") == total


def test_a_rule_that_lost_its_prefix_to_a_better_one_keeps_what_it_counted(host: Host) -> None:
    host.add("first", **HOST_RULE)
    host.hit("10.0.0.1", 5)
    host.add("better", **HOST_RULE, priority=1)
    assert (host.packets("first"), host.packets("better")) == (5, 0)
    host.hit("10.0.0.1", 3)
    host.firewall.delete("better")
    host.hit("10.0.0.1", 2)
    assert host.packets("first") == 7


def test_a_rule_that_is_made_anew_counts_from_0(host: Host) -> None:
    for fields in (HOST_RULE, WEB):
        host.add("a", **fields)
        if fields is HOST_RULE:
            host.hit("10.0.0.1", 5)
        else:
            host.hit_policy("a", 5)
        host.firewall.delete("a")
        host.add("a", **fields)
        assert host.packets("a") == 0
        host.firewall.batch([host.rule("a", **fields, priority=5)], ["a"])
        assert host.packets("a") == 0
        host.firewall.delete("a")


def test_a_rule_of_many_prefixes_counts_their_sum(host: Host) -> None:
    host.add("a", sources=["10.0.0.1", "2001:db8::/32"], direction="both")
    host.hit("10.0.0.1", 1)
    host.hit("2001:db8::/32", 2)
    host.hit("10.0.0.1", 4, scope=2)
    assert host.packets("a") == 7
    host.stop()
    host.start()
    assert host.packets("a") == 7


def test_nothing_stays_of_what_a_deleted_rule_counted(host: Host) -> None:
    host.add("address", **HOST_RULE)
    host.add("policy", **WEB)
    for _ in range(2):
        host.hit("10.0.0.1", 5)
        host.hit_policy("policy", 5)
        handles = [host.handle("address"), host.handle("policy")]
        host.stop()
        host.start()
    host.hit("10.0.0.1", 5)
    host.firewall.batch([], ["address", "policy"])
    assert host.firewall._store.hits(handles) == {}


# --- counters of interfaces


def test_what_interfaces_counted_is_saved_at_the_stop_and_goes_on_after_it(host: Host) -> None:
    host.firewall.attach("eth0", "auto", True, True)
    host.kernel.counted[2] = [InterfaceHits(0, 1, 1, 7, 700), InterfaceHits(1, 0, 0, 3, 180)]
    host.stop()
    host.start()
    host.kernel.counted[2] = [InterfaceHits(0, 1, 1, 2, 200)]
    assert counted(host) == {("ingress", "eth0", "drop", "rule"): 9, ("egress", "eth0", "pass", "default"): 3}


def test_counters_come_by_hook_within_an_interface(host: Host) -> None:
    for name in ("eth1", "eth0"):
        host.firewall.attach(name, "auto", True, True)
    host.kernel.counted[3] = [InterfaceHits(1, 0, 0, 1, 1), InterfaceHits(0, 0, 2, 1, 1)]
    host.kernel.counted[2] = [InterfaceHits(0, 1, 9, 1, 1)]
    assert list(counted(host)) == [
        ("ingress", "eth0", "drop", "malformed_fragment"),
        ("ingress", "eth1", "pass", "not_ip"),
        ("egress", "eth1", "pass", "default"),
    ]


# --- status


def test_a_service_that_is_not_started_says_so(idle_host: Host) -> None:
    idle_host.kernel.refuse["start"] = errno.EPERM
    with pytest.raises(FirewallError):
        idle_host.start()
    status = idle_host.firewall.status()
    assert not status.ready and status.not_ready == ("starting",) and status.maps == ()
    assert idle_host.firewall.counters() == []


def test_the_status_says_what_is_in_force(host: Host) -> None:
    host.add("a", **HOST_RULE)
    host.firewall.attach("eth0", "auto", True, True)
    host.now += 100
    status = host.firewall.status()
    assert (status.ready, status.not_ready, status.drift, status.last_error) == (True, (), (), None)
    assert (status.started_at, status.uptime_s) == (NOW, 100)
    assert (status.rules, status.revision) == (1, 1)
    assert (status.bcc, status.pin_root) == ("0.0-memory", "/sys/fs/bpf/ebpf-fw")
    assert [view.name for view in status.interfaces] == ["eth0"]
    assert {each.name for each in status.maps} >= {"address4", "address6", "policy_rules"}


def test_a_clock_that_goes_back_makes_no_negative_uptime(host: Host) -> None:
    host.now -= 1000
    assert host.firewall.status().uptime_s == 0


def test_the_last_error_is_told(host: Host) -> None:
    host.kernel.refuse["apply"] = errno.ENOMEM
    with pytest.raises(FirewallError):
        host.add("a", **HOST_RULE)
    assert "ENOMEM" in (host.firewall.status().last_error or "")


# --- threads


def test_changes_and_reads_from_many_threads_are_each_whole(host: Host) -> None:
    """Readers see a batch of ten rules or none of it; writers never lose one another's rules."""
    sizes: set[int] = set()
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                sizes.add(len(host.ids()))
                host.firewall.status()
        except BaseException as error:
            failures.append(error)

    def write(thread: int) -> None:
        try:
            for number in range(4):
                rules = [
                    host.rule(f"r{thread}-{number}-{n}", sources=f"10.{thread}.{number}.{n}")
                    for n in range(10)
                ]
                host.firewall.batch(rules, [])
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(thread,)) for thread in range(3)]
    for each in (*readers, *writers):
        each.start()
    for each in writers:
        each.join()
    done.set()
    for each in readers:
        each.join()
    assert not failures
    assert host.firewall.count() == 120 and {size % 10 for size in sizes} == {0}
    assert len(host.kernel.entries) == 120
