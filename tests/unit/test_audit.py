"""The audit: an entry for every change, in the change's own transaction, that nobody changes afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from firewall.address_list import parse_list
from firewall.audit_entries import Denied
from firewall.audit_entry import ACCESS, AuditEntry, Origin
from firewall.audit_journal import AuditJournal
from firewall.audit_log import AuditQuery
from firewall.audited import ACCESS_KEPT, FEW
from firewall.caution import Caution
from firewall.errors import FirewallError, KernelRefused, NotFound, StoreFailed
from firewall.rule import Rule, rule_from_fields
from tests.unit.failing_database import fail_on
from tests.unit.host import NOW, Host, wait_for

CI = Origin("token:ci", "203.0.113.7:5000", "abc", "POST /v1/rules", "ticket 7")


def rule(rule_id: str, **fields: Any) -> Rule:
    return rule_from_fields(fields or {"sources": "192.0.2.1"}, rule_id, NOW)


def entries(host: Host, **query: Any) -> list[AuditEntry]:
    return host.firewall.audit(AuditQuery(**query), 10_000)


def actions(host: Host) -> list[str]:
    return [each.action for each in reversed(entries(host))]


def only(host: Host) -> AuditEntry:
    (entry,) = entries(host)
    return entry


def by_ci(host: Host, call: Callable[[], Any]) -> Any:
    return host.firewall.on_behalf_of(CI, call)


def test_an_entry_says_who_when_from_where_why_and_what_was_before_and_after(host: Host) -> None:
    by_ci(host, lambda: host.firewall.add(rule("a")))
    host.now += 5
    by_ci(host, lambda: host.firewall.replace(rule("a", sources="192.0.2.2", priority=5)))
    by_ci(host, lambda: host.firewall.delete("a"))
    deleted, changed, added = entries(host)
    assert (added.id, added.at, added.kind, added.origin, added.action, added.target) == (
        1, NOW, "change", CI, "rule.add", "a",
    )  # fmt: skip
    assert added.before is None and orjson.loads(added.after or "") == [{"id": "a", "sources": ["192.0.2.1"]}]
    assert changed.at == NOW + 5 and changed.action == "rule.change"
    assert changed.before == added.after
    assert orjson.loads(changed.after or "") == [{"id": "a", "sources": ["192.0.2.2"], "priority": 5}]
    assert deleted.action == "rule.delete" and deleted.before == changed.after and deleted.after is None


def test_every_kind_of_change_leaves_its_entry(host: Host) -> None:
    firewall = host.firewall
    firewall.add(rule("a"))
    firewall.batch([rule("b"), rule("c")], ["a"])
    firewall.replace_all([rule("b")], None)
    firewall.import_list(parse_list("192.0.2.7\n2001:db8::1\n"), "drop", 1000, "ingress")
    firewall.reset_counters("b")
    firewall.attach("eth0", "auto", True, True)
    firewall.detach("eth0")
    firewall.panic_on(60)
    firewall.panic_off()
    firewall.cautiously(Caution("x", 60), lambda: firewall.add(rule("d")))
    firewall.confirm()
    firewall.cautiously(Caution("y", 60), lambda: firewall.delete("d"))
    firewall.roll_back()
    firewall.create_token("t", "read", None)
    firewall.revoke_token("t")
    firewall.enter("config.reload", "/etc/x", changed=["filter"])
    assert actions(host) == [
        "rule.add", "rule.batch", "ruleset.replace", "rule.import", "rule.reset-counters", "interface.attach",
        "interface.detach", "panic.on", "panic.off", "rule.add", "change.confirm", "rule.delete", "change.rollback",
        "token.create", "token.revoke", "config.reload",
    ]  # fmt: skip
    assert {each.origin.actor for each in entries(host)} == {"service"}


def test_what_the_service_does_by_itself_is_entered_as_the_services(host: Host) -> None:
    by_ci(host, lambda: host.firewall.add(rule("a", sources="192.0.2.1", ttl=10)))
    by_ci(host, lambda: host.firewall.panic_on(20))
    host.now += 30
    wait_for(lambda: len(entries(host)) == 4)
    assert {(each.action, each.origin.actor) for each in entries(host)} == {
        ("rule.add", "token:ci"), ("panic.on", "token:ci"), ("rule.expire", "service"), ("panic.off", "service"),
    }  # fmt: skip


def test_what_ran_out_while_nothing_ran_is_entered_at_the_start(host: Host) -> None:
    host.firewall.add(rule("a", sources="192.0.2.1", ttl=10))
    host.stop()
    host.now += 20
    host.start()
    newest = entries(host)[0]
    assert (newest.action, newest.origin.actor, newest.target) == ("rule.expire", "service", "a")


def test_a_list_of_many_addresses_is_one_entry_with_numbers_and_a_digest(host: Host) -> None:
    text = "\n".join(f"10.0.{n >> 8}.{n & 255}" for n in range(5000))
    by_ci(host, lambda: host.firewall.import_list(parse_list(text), "drop", 500, "egress"))
    entry = only(host)
    summary = orjson.loads(entry.summary or "")
    assert entry.before is None and entry.after is None
    assert summary["added"] == 5000 and summary["priority"] == 500 and summary["direction"] == "egress"
    assert summary["digest"].startswith("sha256:") and len(entry.summary or "") < 400
    again = parse_list(text)
    host.firewall.import_list(again, "drop", 501, "egress")
    assert orjson.loads(entries(host)[0].summary or "")["digest"] == summary["digest"]


def test_many_rules_are_one_entry_whose_digest_depends_on_each(host: Host) -> None:
    many = [rule(f"r{n}", sources=f"192.0.2.{n}") for n in range(FEW + 1)]
    host.firewall.batch(many, [])
    first = orjson.loads(only(host).summary or "")
    assert first["added"] == FEW + 1 and only(host).after is None
    host.firewall.batch([], [each.id for each in many])
    host.firewall.batch([*many[:-1], rule(many[-1].id, sources="198.51.100.1")], [])
    assert orjson.loads(entries(host)[0].summary or "")["digest"] != first["digest"]


def test_a_change_that_waits_is_entered_with_its_number(host: Host) -> None:
    done = host.firewall.cautiously(Caution("x", 60), lambda: host.firewall.add(rule("a")))
    assert done.pending is not None
    assert orjson.loads(only(host).summary or "") == {"confirm": done.pending.id}


def test_what_changes_nothing_is_not_entered(host: Host) -> None:
    host.firewall.add(rule("a"))
    before = host.stored()
    by_ci(host, lambda: host.firewall.add(rule("a")))
    by_ci(host, lambda: host.firewall.replace(rule("a")))
    by_ci(
        host, lambda: host.firewall.cautiously(Caution("x", dry_run=True), lambda: host.firewall.delete("a"))
    )
    with pytest.raises(NotFound):
        by_ci(host, lambda: host.firewall.delete("b"))
    assert host.stored() == before


@pytest.mark.parametrize("statement", ["INSERT INTO audit", "COMMIT"])
def test_a_change_without_its_entry_is_none(host: Host, statement: str) -> None:
    before = host.state()
    with fail_on(host.firewall._store, statement), pytest.raises(StoreFailed):
        host.firewall.add(rule("a"))
    assert host.state() == before


def test_a_change_that_the_kernel_refuses_leaves_no_entry(host: Host) -> None:
    before = host.stored()
    host.kernel.refuse["apply"] = 12
    with pytest.raises(KernelRefused):
        host.firewall.add(rule("a"))
    assert host.stored() == before


def test_each_change_of_a_group_has_its_own_entry_and_a_refused_one_has_none(host: Host) -> None:
    def call(number: int) -> Callable[[], Any]:
        origin = Origin(f"token:{number}", request_id=f"q{number}")
        return lambda: host.firewall.on_behalf_of(origin, lambda: host.firewall.add(rule(f"r{number % 3}")))

    host.firewall.add(rule("r1", sources="198.51.100.1"))
    outcomes = host.firewall.together([call(number) for number in range(3)])
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    found = [(each.origin.actor, each.target) for each in reversed(entries(host))]
    assert found == [("service", "r1"), ("token:0", "r0"), ("token:2", "r2")]


def test_a_group_that_is_not_durable_leaves_no_entry(host: Host) -> None:
    calls = [lambda: host.firewall.add(rule("a")), lambda: host.firewall.add(rule("b"))]
    with fail_on(host.firewall._store, "COMMIT"):
        outcomes = host.firewall.together(calls)
    assert all(isinstance(outcome.error, FirewallError) for outcome in outcomes)
    assert entries(host) == []
    host.firewall.add(rule("c"))
    assert [(each.id, each.target) for each in entries(host)] == [(1, "c")]


def test_what_is_entered_beside_the_rules_waits_for_no_group_and_breaks_none(host: Host) -> None:
    denied = Denied(Origin("anonymous", "203.0.113.9:1"), "invalid_token", 3, NOW)
    calls: list[Callable[[], Any]] = [
        lambda: host.firewall.add(rule("a")),
        lambda: host.firewall.enter_denied([denied]),
        lambda: host.firewall.add(rule("b")),
        lambda: host.firewall.create_token("t", "read", None),
    ]
    outcomes = host.firewall.together(calls)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert [each.target for each in reversed(entries(host))] == ["a", "invalid_token", "b", "t"]


def test_a_change_of_which_nobody_thought_is_entered_by_its_call(host: Host) -> None:
    """A part that is added later and does not speak of the audit."""

    def change() -> None:
        with host.firewall._changing_alone(), host.firewall._store.transaction():
            host.firewall._store.advance_revision()

    by_ci(host, change)
    assert (only(host).action, only(host).target, only(host).origin) == ("change", "POST /v1/rules", CI)
    change()  # the service's own
    assert len(entries(host)) == 1


def test_nor_is_one_forgotten_that_shares_its_transaction(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.firewall, "_audit_rules", lambda *_: None)
    calls = [
        lambda: by_ci(host, lambda: host.firewall.add(rule("a"))),
        lambda: by_ci(host, lambda: host.firewall.add(rule("b"))),
    ]
    host.firewall.together(calls)
    assert [each.action for each in entries(host)] == ["change", "change"]


# -- append only


def test_the_database_refuses_to_change_an_entry_or_to_delete_one_that_is_kept(host: Host) -> None:
    host.firewall.add(rule("a"))
    connection = sqlite3.connect(host.database)
    for sql, words in (
        ("UPDATE audit SET actor = 'nobody'", "never changed"),
        ("DELETE FROM audit", "never deleted"),
    ):
        with pytest.raises(sqlite3.IntegrityError, match=words):
            connection.execute(sql)
    connection.close()


def test_the_oldest_beyond_what_is_kept_go_and_changes_are_not_pushed_out_by_denied_accesses(
    idle_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firewall.enforcer._LOOK_S", 0.05)
    monkeypatch.setattr("firewall.audit_log.TRIM_CHUNK", 70)
    monkeypatch.setattr("firewall.audited.TRIM_CHUNK", 70)
    idle_host.start(state={"directory": str(idle_host.settings.state.directory), "audit_keep": 1000})
    for number in range(1200):
        idle_host.firewall.enter("test", str(number))
    denied = [Denied(Origin("anonymous", "203.0.113.7:1"), "invalid_token", 3, NOW)] * 1100
    idle_host.firewall.enter_denied(denied)
    wait_for(lambda: len(entries(idle_host)) == 2000, 20)
    changes = entries(idle_host, kind="change")
    assert [each.target for each in changes] == [str(number) for number in reversed(range(200, 1200))]
    assert len(entries(idle_host, kind=ACCESS)) == 1000 <= ACCESS_KEPT


# -- reading


def test_entries_are_found_by_each_filter(host: Host) -> None:
    by_ci(host, lambda: host.firewall.add(rule("a")))
    host.now += 10
    host.firewall.delete("a")
    host.firewall.enter_denied([Denied(Origin("anonymous", "203.0.113.9:1"), "invalid_token", 3, host.now)])
    for query, ids in (
        ({}, [3, 2, 1]),
        ({"kind": "change"}, [2, 1]),
        ({"kind": "access"}, [3]),
        ({"actor": "token:ci"}, [1]),
        ({"action": "rule.delete"}, [2]),
        ({"action": "rule"}, [2, 1]),
        ({"action": "rul"}, []),
        ({"action": "%"}, []),
        ({"target": "a"}, [2, 1]),
        ({"request_id": "abc"}, [1]),
        ({"since": NOW + 10}, [3, 2]),
        ({"until": NOW + 10}, [1]),
        ({"before": 2}, [1]),
        ({"target": "a", "actor": "service"}, [2]),
    ):
        assert [each.id for each in entries(host, **query)] == ids, query
    assert [each.id for each in host.firewall.audit(AuditQuery(), 2)] == [3, 2]


# -- the log


TOLD = CI._replace(actor="token:told")


def told(capsys: pytest.CaptureFixture[str], words: str = "") -> list[str]:
    """Lines with these words: the last line of the test before may come late."""
    return [line for line in capsys.readouterr().out.splitlines() if words in line]


def entry(action: str, target: str, origin: Origin = TOLD, kind: str = "change") -> AuditEntry:
    return AuditEntry(0, NOW, kind, origin, action, target, None, None, None)


def test_a_change_is_told_to_the_log_with_who_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    journal = AuditJournal(delay_s=3600)
    journal.add([(7, entry("rule.add", "a"))])
    journal.flush()
    (line,) = told(capsys, "told")
    for words in (
        "rule.add",
        "audit=7",
        "target=a",
        "token:told",
        "203.0.113.7:5000",
        "ticket 7",
        "request=abc",
    ):
        assert words in line


def test_changes_of_one_moment_that_are_alike_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    journal = AuditJournal(delay_s=3600)
    journal.add([(number, entry("rule.add", f"r{number}")) for number in range(1, 31)])
    journal.add([(31, entry("rule.delete", "r1")), (32, entry("rule.add", "b", Origin("uid:told")))])
    journal.flush()
    many, deleted, other = told(capsys, "told")
    assert "audit=1-30" in many and "r1, r2" in many and "and 10 more" in many
    assert "rule.delete" in deleted and "uid:told" in other


def test_the_log_hears_it_soon_and_at_the_end(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.firewall.add(rule("a"))
    wait_for(lambda: any("rule.add" in line for line in told(capsys)))
    host.firewall.delete("a")
    host.stop()
    assert any("rule.delete" in line for line in told(capsys))


def test_a_refused_change_is_told_to_the_log(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFound):
        by_ci(host, lambda: host.firewall.delete("a"))
    (line,) = [each for each in told(capsys) if "refused" in each]
    assert "rule_not_found" in line and "token:ci" in line and "request=abc" in line
