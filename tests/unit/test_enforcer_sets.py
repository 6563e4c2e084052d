"""Sets in the enforcer: time, failures of kernel and disk, restarts, and who may not be locked out."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from firewall.address import format_address, parse_prefix
from firewall.caution import Caution
from firewall.errors import Conflict, KernelRefused, Lockout, StoreFailed
from firewall.hits import NO_HITS, Hits
from firewall.set_entries import EntryColumns, SetEntry, entry_columns
from firewall.view import EntryQuery
from tests.unit.failing_database import fail_on
from tests.unit.host import NOW, Host, wait_for
from tests.unit.test_lockout import SSH

RULE = {"sources": ["@a"]}


def entries(prefixes: Iterable[str], ttl: float | None = None) -> list[EntryColumns]:
    until = None if ttl is None else NOW + ttl
    return entry_columns(SetEntry(parse_prefix(each), until) for each in prefixes)


def add(host: Host, *prefixes: str, ttl: float | None = None, name: str = "a") -> None:
    host.firewall.put_set(name)
    host.firewall.add_entries(name, entries(prefixes, ttl))


def content(host: Host, name: str = "a") -> list[str]:
    """As it is stored; that as many are in memory is checked beside."""
    views, total = host.firewall.entries(name, EntryQuery(), 0, 1000)
    assert total == len(views) == host.firewall.set(name).entries
    return [str(each.prefix) for each in views]


def stored(host: Host) -> int:
    """Rows of entries, also of those whose time has come."""
    count = host.firewall._store.connection.execute("SELECT count(*) FROM set_entries").fetchone()[0]
    return int(count)


def in_kernel(host: Host) -> set[str]:
    return {
        str(parse_prefix(f"{format_address(key.version, key.address)}/{key.length}"))
        for key in list(host.kernel.entries)
    }


def test_no_change_waits_while_entries_are_looked_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    add(host, "10.0.0.1", "10.0.0.2")
    store, count = host.firewall._set_store, host.firewall._set_store.count
    made: list[str] = []

    def counted(*arguments: Any) -> int:
        def change() -> None:
            host.add("meanwhile", sources=["192.0.2.1"])
            made.append("meanwhile")

        thread = threading.Thread(target=change)
        thread.start()
        thread.join(10)
        return count(*arguments)

    monkeypatch.setattr(store, "count", counted)
    views, total = host.firewall.entries("a", EntryQuery(address=parse_prefix("10.0.0.2")), 0, 10)
    assert made == ["meanwhile"]
    assert [str(each.prefix) for each in views] == ["10.0.0.2"] and total == 1


# -- time


def test_an_entry_goes_when_its_time_comes_and_others_stay(host: Host) -> None:
    add(host, "10.0.0.1", ttl=10)
    add(host, "10.0.0.2", ttl=30)
    add(host, "10.0.0.3")
    host.add("r", **RULE)
    host.now += 9
    assert in_kernel(host) == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    host.now += 1
    wait_for(lambda: in_kernel(host) == {"10.0.0.2", "10.0.0.3"})
    assert content(host) == ["10.0.0.2", "10.0.0.3"]
    host.now += 100_000  # a clock step, or a night's suspend
    wait_for(lambda: in_kernel(host) == {"10.0.0.3"})
    assert content(host) == ["10.0.0.3"]


def test_an_entry_whose_time_came_while_the_service_was_stopped_is_never_in_force(host: Host) -> None:
    add(host, "10.0.0.1", ttl=10)
    add(host, "10.0.0.2", "2001:db8::/32", ttl=30)
    host.add("r", **RULE)
    host.stop()
    host.now += 11
    host.start()
    assert content(host) == ["10.0.0.2", "2001:db8::/32"]
    assert in_kernel(host) == {"10.0.0.2", "2001:db8::/32"}


def test_many_that_expire_at_once_go_in_parts_and_the_rule_keeps_what_they_counted(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firewall.set_expiry._EXPIRE_AT_ONCE", 64)
    add(host, *(f"10.0.{n >> 8}.{n & 255}" for n in range(300)), ttl=10)
    add(host, *(f"10.1.{n >> 8}.{n & 255}" for n in range(300)), ttl=10, name="b")
    host.add("r", sources=["@a", "@b"])
    applied = host.kernel.applied
    host.now += 10
    wait_for(lambda: not in_kernel(host))
    wait_for(lambda: not stored(host))
    assert (content(host, "a"), content(host, "b")) == ([], [])
    assert host.kernel.applied - applied == 2 * 10  # 600 by 64: out of the kernel, then out of the store
    assert host.kernel.falls == 1


def test_many_that_expire_at_once_are_ready_before_and_go_when_their_time_comes_together(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firewall.set_expiry._EXPIRE_AT_ONCE", 64)
    add(host, *(f"10.0.{n >> 8}.{n & 255}" for n in range(300)), ttl=40)
    add(host, *(f"10.1.{n >> 8}.{n & 255}" for n in range(50)), ttl=40.3)
    add(host, *(f"10.2.{n >> 8}.{n & 255}" for n in range(50)), ttl=41)
    add(host, *(f"10.3.{n >> 8}.{n & 255}" for n in range(10)), ttl=3)
    host.add("r", **RULE)
    host.now += 10
    wait_for(lambda: len(in_kernel(host)) == 400)
    assert host.firewall._departure is None and not host.kernel.doomed
    host.now += 15
    wait_for(lambda: host.firewall._departure is not None and host.firewall._departure.is_ready)
    assert len(host.kernel.doomed) == 350 and len(in_kernel(host)) == 400
    host.firewall.add_entries("a", entries(["10.0.0.7"], 100))  # lives on
    host.now += 15.2
    assert not host.kernel.falls
    host.now += 0.2
    wait_for(lambda: len(in_kernel(host)) == 51)
    assert host.kernel.falls == 1
    host.now += 1
    wait_for(lambda: in_kernel(host) == {"10.0.0.7"} and stored(host) == 1)
    assert content(host) == ["10.0.0.7"] and host.firewall._departure is None
    assert not host.kernel.fallen and not host.kernel.doomed


def test_what_expired_is_gone_for_everybody_also_while_it_cannot_be_deleted(host: Host) -> None:
    add(host, "10.0.0.1", "10.0.0.2", ttl=10)
    add(host, "10.0.0.3")
    host.add("r", **RULE)
    with fail_on(host.firewall._store, "DELETE FROM set_entries"):
        host.now += 10
        wait_for(lambda: in_kernel(host) == {"10.0.0.3"})
        assert stored(host) == 3 and content(host) == ["10.0.0.3"]
        assert [str(each.prefix) for each in host.firewall.all_entries("a")] == ["10.0.0.3"]
        add(host, "10.0.0.1", ttl=20)
        assert content(host) == ["10.0.0.1", "10.0.0.3"] and in_kernel(host) == {"10.0.0.1", "10.0.0.3"}
    wait_for(lambda: stored(host) == 2)
    assert content(host) == ["10.0.0.1", "10.0.0.3"] and in_kernel(host) == {"10.0.0.1", "10.0.0.3"}


def test_what_expired_and_was_not_deleted_yet_is_not_there_after_a_start(host: Host) -> None:
    add(host, "10.0.0.1", ttl=10)
    add(host, "10.0.0.3")
    host.add("r", **RULE)
    with fail_on(host.firewall._store, "DELETE FROM set_entries"):
        host.now += 10
        wait_for(lambda: in_kernel(host) == {"10.0.0.3"})
        host.stop()
    host.start()
    assert content(host) == ["10.0.0.3"] and in_kernel(host) == {"10.0.0.3"} and stored(host) == 1


def test_entries_that_a_rule_with_ports_names_expire_all_at_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its policy is compiled anew for each part."""
    monkeypatch.setattr("firewall.set_expiry._EXPIRE_AT_ONCE", 64)
    add(host, *(f"10.0.{n >> 8}.{n & 255}" for n in range(300)), ttl=10)
    host.add("ports", protocols=["tcp"], **RULE)
    host.firewall.put_set("b")
    policies = host.kernel.policies
    host.now += 5
    wait_for(lambda: host.firewall._departure is not None and host.firewall._departure.is_ready)
    host.firewall.add_entries("a", entries(["10.0.0.7"], 100))  # lives on
    host.firewall.delete_entries("a", entries(["10.0.1.3"]))
    host.firewall.add_entries("a", entries(["10.0.1.3"]))  # and so does this one
    policies += 2
    assert host.kernel.policies == policies and len(content(host)) == 300
    host.now += 5
    wait_for(lambda: stored(host) == 2)
    assert host.kernel.policies == policies + 1 and content(host) == ["10.0.0.7", "10.0.1.3"]


def test_an_entry_that_is_added_again_lives_on(host: Host) -> None:
    add(host, "10.0.0.1", ttl=10)
    host.add("r", **RULE)
    add(host, "10.0.0.1", ttl=100)
    host.now += 50
    add(host, "10.0.0.2")
    assert content(host) == ["10.0.0.1", "10.0.0.2"]
    host.firewall.add_entries("a", entries(["10.0.0.1"]))
    host.now += 100
    add(host, "10.0.0.3")
    assert content(host) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


# -- restarts and failures


def test_sets_and_the_rules_that_name_them_are_there_again_after_a_start(host: Host) -> None:
    add(host, "10.0.0.1", "10.0.0.0/8", "2001:db8::1")
    add(host, "10.0.0.1", name="b")
    host.add("r", **RULE)
    host.add("policy", sources=["@b"], protocols=["tcp"])
    before = dict(host.kernel.entries)
    host.stop()
    host.start()
    assert host.kernel.entries == before and len(before) == 3
    assert content(host) == ["10.0.0.0/8", "10.0.0.1", "2001:db8::1"] and content(host, "b") == ["10.0.0.1"]
    assert host.firewall.sets()[1].rules == ("policy",)


CHANGES: dict[str, Callable[[Host], Any]] = {
    "add": lambda host: host.firewall.add_entries("a", entries(["10.0.0.3", "10.0.0.1"], ttl=50)),
    "delete": lambda host: host.firewall.delete_entries("a", entries(["10.0.0.1"])),
    "replace": lambda host: host.firewall.replace_entries("a", entries(["10.0.0.2", "10.0.0.9"])),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("failure", ["kernel", "disk", "commit"])
def test_a_change_that_fails_leaves_store_memory_and_kernel_as_they_were(
    host: Host, change: str, failure: str
) -> None:
    add(host, "10.0.0.1", "10.0.0.2")
    host.add("r", **RULE)
    before = content(host), dict(host.kernel.entries), host.firewall.sets()
    if failure == "kernel":
        host.kernel.refuse["apply"] = errno.ENOMEM
        with pytest.raises(KernelRefused):
            CHANGES[change](host)
        host.kernel.refuse.clear()
    else:
        statement = "COMMIT" if failure == "commit" else "UPDATE sets"
        with fail_on(host.firewall._store, statement), pytest.raises(StoreFailed):
            CHANGES[change](host)
    assert (content(host), dict(host.kernel.entries), host.firewall.sets()) == before
    CHANGES[change](host)
    assert in_kernel(host) == set(content(host))
    expected = content(host)
    host.stop()
    host.start()
    assert content(host) == expected and in_kernel(host) == set(expected)


def test_what_waits_for_its_confirmation_is_taken_back_by_a_start_after_a_reboot(host: Host) -> None:
    add(host, "10.0.0.1", "10.0.0.2", ttl=100)
    host.add("r", **RULE)
    asked = Caution("a change", confirm_within_s=60)
    host.firewall.cautiously(asked, lambda: host.firewall.replace_entries("a", entries(["10.0.0.3"])))
    assert in_kernel(host) == {"10.0.0.3"}
    host.stop()
    host.kernel.boot = "second"
    host.start()
    assert in_kernel(host) == {"10.0.0.1", "10.0.0.2"}
    host.now += 100
    wait_for(lambda: not in_kernel(host))


def test_a_rollback_brings_back_no_entry_whose_time_has_passed(host: Host) -> None:
    add(host, "10.0.0.1", ttl=10)
    add(host, "10.0.0.2")
    host.add("r", **RULE)
    asked = Caution("a change", confirm_within_s=60)
    host.firewall.cautiously(asked, lambda: host.firewall.replace_entries("a", entries(["10.0.0.3"])))
    host.now += 20
    host.firewall.roll_back()
    assert in_kernel(host) == {"10.0.0.2"} and content(host) == ["10.0.0.2"]


def test_a_source_changes_its_own_set_alone(host: Host) -> None:
    host.firewall.put_set("feed", source="feed:x")
    host.firewall.add_entries("feed", entries(["10.0.0.1"]), source="feed:x")
    with pytest.raises(Conflict) as refused:
        host.firewall.add_entries("feed", entries(["10.0.0.2"]))
    assert refused.value.code == "set_managed"
    host.firewall.give_set("feed", "api")
    host.firewall.add_entries("feed", entries(["10.0.0.2"]))
    assert content(host, "feed") == ["10.0.0.1", "10.0.0.2"]


def test_a_preview_says_what_would_come_and_go(host: Host) -> None:
    add(host, "10.0.0.1", "10.0.0.2")
    whole = host.firewall.preview_entries("a", entries(["10.0.0.2", "10.0.0.3"]), is_whole=True)
    assert (whole.added, whole.removed, whole.unchanged) == (1, 1, 1)
    some = host.firewall.preview_entries("a", entries(["10.0.0.3"]), is_whole=False)
    assert (some.added, some.removed) == (1, 0) and content(host) == ["10.0.0.1", "10.0.0.2"]


# -- lockout


@pytest.fixture
def reached(idle_host: Host) -> Host:
    """eth0 is protected, an operator is on it by SSH, and two rules drop what is in a set."""
    idle_host.kernel.live = [SSH]
    idle_host.start(interfaces=[{"name": "eth0"}])
    add(idle_host, "192.0.2.1")
    idle_host.add("r", **RULE)
    idle_host.add("ports", sources=["@b"], protocols=["tcp"]) if idle_host.firewall.put_set("b") else None
    return idle_host


@pytest.mark.parametrize(("name", "rule"), [("a", "r"), ("b", "ports")])
@pytest.mark.parametrize("call", ["add_entries", "replace_entries"])
def test_entries_that_drop_an_ssh_session_are_refused_and_the_rule_is_named(
    reached: Host, call: str, name: str, rule: str
) -> None:
    change = getattr(reached.firewall, call)
    cut = entries(["203.0.113.0/24"])
    with pytest.raises(Lockout) as refused:
        reached.firewall.cautiously(Caution("a change"), lambda: change(name, cut))
    assert f"'{rule}'" in refused.value.detail and "SSH session" in refused.value.detail
    assert "203.0.113.0/24" not in content(reached, name)
    done = reached.firewall.cautiously(Caution("a change", dry_run=True), lambda: change(name, cut))
    assert done.effect is not None and done.effect.lockouts[0].rule == rule
    reached.firewall.cautiously(Caution("a change", allow_lockout=True), lambda: change(name, cut))
    assert "203.0.113.0/24" in content(reached, name)


def test_an_allow_of_a_set_that_loses_the_operator_is_refused(reached: Host) -> None:
    add(reached, "203.0.113.9", name="office")
    reached.add("office", sources=["@office"], action="allow", priority=1)
    reached.add("net", sources=["203.0.113.0/24"])
    gone = entries(["203.0.113.9"])
    with pytest.raises(Lockout):
        reached.firewall.cautiously(
            Caution("a change"), lambda: reached.firewall.delete_entries("office", gone)
        )
    assert content(reached, "office") == ["203.0.113.9"]


# -- what is said about rules


def test_rules_with_sets_are_not_accused_and_accuse_nobody_that_is_not_surely_beaten(host: Host) -> None:
    add(host, "10.0.0.0/8")
    host.firewall.put_set("empty")
    host.add("all", sources=["10.0.0.0/8"], priority=1)
    host.add("r", **RULE)
    host.add("nobody", sources=["@empty"], family="ipv4")
    host.add("web", sources=["@a"], protocols=["tcp"], priority=500)
    host.add("later", sources=["10.1.0.0/16"], protocols=["tcp"], priority=600)
    host.add("twin", **RULE)
    findings = host.firewall.analysis(0, 100).items
    assert {each.id for each in findings} <= {"later"}
    assert all(each.warning.rule == "all" for each in findings)
    assert [host.firewall.rule(each).warnings for each in ("r", "nobody", "web", "twin")] == [()] * 4


def test_an_imported_address_that_a_set_has_too_gets_a_rule_of_its_own(host: Host) -> None:
    add(host, "10.0.0.1", "10.0.0.2")
    host.add("r", **RULE)
    listed = [each.prefixes for each in entries(["10.0.0.1", "10.0.0.3"])]
    assert host.firewall.import_list(listed, "drop", 1000, "ingress").added == 2
    assert host.firewall.import_list(listed, "drop", 1000, "ingress").unchanged == 2
    host.firewall.replace_entries("a", [])
    assert in_kernel(host) == {"10.0.0.1", "10.0.0.3"}
    add(host, "10.0.0.1")
    found = [each.warning.rule for each in host.firewall.analysis(0, 100).items]
    assert found == ["r"]  # the older of the two has the address by its set


# -- what entries count


def stats(host: Host, name: str = "a") -> dict[str, int | None]:
    views, _ = host.firewall.entries(name, EntryQuery(), 0, 1000)
    return {str(each.prefix): each.packets for each in views}


def hit_entry(host: Host, prefix: str, packets: int, name: str = "a") -> None:
    policy = host.kernel.policy
    assert policy is not None
    counter = policy.named.sets[name].counter(parse_prefix(prefix))
    assert counter is not None
    before = host.kernel.counted_entries.get(counter, NO_HITS)
    host.kernel.counted_entries[counter] = before.plus(Hits(packets, 100 * packets, host.now))


def test_an_entry_counts_for_all_rules_that_name_its_set(host: Host) -> None:
    add(host, "10.0.0.1", "10.0.0.2")
    assert stats(host) == {"10.0.0.1": None, "10.0.0.2": None}
    host.add("port", **RULE, protocols=["tcp"])
    hit_entry(host, "10.0.0.1", 3)
    assert stats(host) == {"10.0.0.1": 3, "10.0.0.2": 0}
    host.add("all", **RULE)
    host.hit("10.0.0.1", 4)
    assert stats(host) == {"10.0.0.1": 7, "10.0.0.2": 0}
    host.firewall.delete("port")
    assert stats(host) == {"10.0.0.1": 4, "10.0.0.2": 0}


def test_entries_go_on_counting_where_the_service_is_killed(host: Host) -> None:
    add(host, "10.0.0.1", "10.0.0.2")
    host.add("port", **RULE, protocols=["tcp"])
    hit_entry(host, "10.0.0.2", 5)
    host.kill()
    host.start()
    assert stats(host) == {"10.0.0.1": 0, "10.0.0.2": 5}
    add(host, "10.0.0.0", "10.0.0.3")
    assert stats(host) == {"10.0.0.0": 0, "10.0.0.1": 0, "10.0.0.2": 5, "10.0.0.3": 0}


def test_a_change_that_is_refused_takes_no_entry_its_count(host: Host) -> None:
    add(host, "10.0.0.1", "10.0.0.2")
    host.add("port", **RULE, protocols=["tcp"])
    hit_entry(host, "10.0.0.2", 5)
    host.kernel.refuse["apply"] = errno.EIO
    with pytest.raises(KernelRefused):
        add(host, "10.0.0.0")
    del host.kernel.refuse["apply"]
    assert stats(host) == {"10.0.0.1": 0, "10.0.0.2": 5}
    with fail_on(host.firewall._store, "COMMIT"), pytest.raises(StoreFailed):
        host.firewall.delete_entries("a", entries(["10.0.0.1"]))
    assert stats(host) == {"10.0.0.1": 0, "10.0.0.2": 5}
