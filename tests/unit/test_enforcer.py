"""Changes of rules through the enforcer: durable and in the kernel when answered, or a named error."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from firewall.address import parse_prefix
from firewall.errors import AlreadyExists, InvalidInput, NotFound, PreconditionFailed, Problem, TableFull
from firewall.rule import rule_from_fields
from firewall.view import BatchOutcome, RuleQuery
from tests.unit.host import NOW, Host

WEB = {"destination_ports": [80]}
HOST_RULE = {"sources": "10.0.0.1"}


def small(idle_host: Host, addresses: int = 3, rules: int = 2) -> Host:
    idle_host.start(bpf={"max_addresses": addresses, "max_rules": rules})
    return idle_host


# --- one rule


@pytest.mark.parametrize("fields", [HOST_RULE, WEB])
def test_an_added_rule_is_stored_and_in_the_kernel(host: Host, fields: dict[str, Any]) -> None:
    view, is_new = host.firewall.add(host.rule("a", **fields))
    assert is_new
    assert view == host.firewall.rule("a")
    assert (view.created_at, view.updated_at, view.packets, view.bytes, view.last_hit) == (
        NOW,
        NOW,
        0,
        0,
        None,
    )
    assert host.handles_in_kernel() == {host.handle("a")}
    assert (host.firewall.count(), host.firewall.revision) == (1, 1)


def test_the_same_rule_again_is_no_change(host: Host) -> None:
    host.add("a", **WEB, ttl=60)
    before = host.state()
    host.now += 5
    view, is_new = host.firewall.add(host.rule("a", **WEB, ttl=60))
    assert not is_new and view.rule.expires_at == NOW + 60
    assert host.state() == before


def test_another_rule_of_the_same_id_is_refused(host: Host) -> None:
    host.add("a", **WEB)
    before = host.state()
    with pytest.raises(AlreadyExists, match="there is another rule 'a'") as raised:
        host.add("a", **HOST_RULE)
    assert raised.value.problems == (Problem("/id", "is the id of another rule"),)
    assert "PUT or PATCH" in raised.value.hint
    assert host.state() == before


def test_a_disabled_rule_is_stored_only(host: Host) -> None:
    host.add("a", **HOST_RULE, enabled=False)
    host.add("b", **WEB, enabled=False)
    assert host.ids() == ["a", "b"] and not host.handles_in_kernel()


@pytest.mark.parametrize("before", [HOST_RULE, WEB, {**WEB, "enabled": False}])
@pytest.mark.parametrize("after", [{"sources": "10.0.0.2"}, {"protocols": "udp"}, {**WEB, "enabled": False}])
def test_a_rule_changes_to_any_other_under_its_handle(
    host: Host, before: dict[str, Any], after: dict[str, Any]
) -> None:
    host.add("a", **before)
    handle = host.handle("a")
    host.now += 5
    view = host.firewall.replace(host.rule("a", **after))
    assert view.rule == host.rule("a", **after)
    assert view.created_at == NOW and view.updated_at == (NOW if before == after else NOW + 5)
    assert host.handle("a") == handle
    assert host.handles_in_kernel() == ({handle} if view.rule.enabled else set())


def test_an_edit_that_changes_nothing_is_no_change(host: Host) -> None:
    host.add("a", **WEB)
    before = host.state()
    host.now += 5
    assert host.firewall.edit("a", lambda rule: rule).updated_at == NOW
    assert host.state() == before


def test_an_edit_that_raises_changes_nothing(host: Host) -> None:
    host.add("a", **WEB)
    before = host.state()
    with pytest.raises(InvalidInput):
        host.firewall.edit("a", lambda rule: rule_from_fields({"priority": -1}, rule.id, NOW))
    assert host.state() == before


@pytest.mark.parametrize("fields", [HOST_RULE, WEB])
def test_a_deleted_rule_is_nowhere_and_its_handle_is_not_used_again(
    host: Host, fields: dict[str, Any]
) -> None:
    host.add("a", **fields)
    handle = host.handle("a")
    host.firewall.delete("a")
    assert host.ids() == [] and not host.handles_in_kernel()
    host.add("a", **fields)
    assert host.handle("a") > handle


def test_a_rule_that_is_not_there_is_named(host: Host) -> None:
    before = host.state()
    for call in (
        lambda: host.firewall.rule("x"),
        lambda: host.firewall.delete("x"),
        lambda: host.firewall.replace(host.rule("x")),
        lambda: host.firewall.edit("x", lambda rule: rule),
    ):
        with pytest.raises(NotFound, match="there is no rule 'x'") as raised:
            call()
        assert raised.value.code == "rule_not_found" and raised.value.hint
    assert host.state() == before


def test_ids_that_the_service_makes_are_valid_and_sort_by_time(host: Host) -> None:
    ids = []
    for _ in range(5):
        ids.append(host.firewall.new_rule_id())
        host.now += 0.01
    assert ids == sorted(ids) and len(set(ids)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", each) for each in ids)


# --- many rules


def test_a_batch_deletes_and_adds_as_one_change(host: Host) -> None:
    host.add("a", **HOST_RULE)
    host.add("b", **WEB)
    host.add("c", sources="10.0.0.9")
    applied = host.kernel.applied
    adds = [host.rule("d", protocols="udp"), host.rule("c", sources="10.0.0.9"), host.rule("a", **WEB)]
    outcome = host.firewall.batch(adds, ["a", "b", "a"])
    assert outcome == BatchOutcome(added=2, deleted=2, unchanged=1, ids=("d", "c", "a"))
    assert host.ids() == ["c", "d", "a"]
    assert host.kernel.applied == applied + 1
    assert host.handles_in_kernel() == {host.handle(each) for each in "cda"}


def test_a_batch_of_nothing_new_is_no_change(host: Host) -> None:
    host.add("a", **HOST_RULE)
    before = host.state()
    assert host.firewall.batch([host.rule("a", **HOST_RULE)], []) == BatchOutcome(0, 0, 1, ("a",))
    assert host.firewall.batch([], []) == BatchOutcome(0, 0, 0, ())
    assert host.state() == before


@pytest.mark.parametrize(
    ("adds", "deletes", "error", "pointer"),
    [
        ({"new": WEB}, ["a", "missing"], NotFound, "/delete/1"),
        ({"new": WEB, "b": HOST_RULE}, ["a"], AlreadyExists, "/add/1/id"),
        ({"new": WEB, "bad": {"interfaces": ["eth0", "nic9"]}}, ["a"], InvalidInput, "/add/1/interfaces/1"),
    ],
)
def test_a_batch_with_a_fault_changes_nothing(
    host: Host, adds: dict[str, dict[str, Any]], deletes: list[str], error: type[Exception], pointer: str
) -> None:
    host.add("a", **HOST_RULE)
    host.add("b", **WEB)
    before = host.state()
    with pytest.raises(error) as raised:
        host.firewall.batch([host.rule(rule_id, **each) for rule_id, each in adds.items()], deletes)
    assert [problem.pointer for problem in raised.value.problems] == [pointer]  # type: ignore[attr-defined]
    assert host.state() == before


def test_an_id_given_twice_is_refused(host: Host) -> None:
    before = host.state()
    twice = [host.rule("a", **WEB), host.rule("b", **WEB), host.rule("a", **WEB)]
    for call, pointer in (
        (lambda: host.firewall.batch(twice, []), "/add/2/id"),
        (lambda: host.firewall.replace_all(twice, None), "/rules/2/id"),
    ):
        with pytest.raises(InvalidInput, match="'a' is given twice") as raised:
            call()
        assert [problem.pointer for problem in raised.value.problems] == [pointer]
    assert host.state() == before


def test_replacing_all_keeps_what_stays_the_same_and_its_counters(host: Host) -> None:
    for rule_id, fields in {"same": HOST_RULE, "changed": WEB, "gone": {"sources": "10.0.0.9"}}.items():
        host.add(rule_id, **fields)
    handles = {each: host.handle(each) for each in host.ids()}
    host.hit("10.0.0.1", 7)
    host.now += 5
    rules = [host.rule("new", **WEB), host.rule("changed", **WEB, priority=5), host.rule("same", **HOST_RULE)]
    applied = host.kernel.applied
    outcome = host.firewall.replace_all(rules, None)
    assert (outcome.added, outcome.deleted, outcome.unchanged) == (2, 1, 1)
    assert outcome.ids == ("new", "changed", "same")
    assert host.kernel.applied == applied + 1
    assert host.ids() == ["same", "changed", "new"]
    assert {each: host.handle(each) for each in ("same", "changed")} == {
        each: handles[each] for each in ("same", "changed")
    }
    assert host.packets("same") == 7
    assert host.firewall.rule("changed").created_at == NOW
    assert host.firewall.rule("changed").updated_at == NOW + 5


def test_what_was_exported_replaces_itself_without_a_change(host: Host) -> None:
    host.add("a", **HOST_RULE, ttl=60)
    host.add("b", **WEB, labels={"a": "b"}, enabled=False)
    host.now += 5.4321
    host.add("c", direction="both", icmp_types="8", ttl="1h")
    before = host.state()
    rules, etag = host.firewall.export()
    outcome = host.firewall.replace_all([host.rule(each.id, **each.fields()) for each in rules], etag)
    assert outcome == BatchOutcome(0, 0, 3, ("a", "b", "c"))
    assert host.state() == before


def test_replacing_all_by_nothing_empties_the_kernel(host: Host) -> None:
    host.add("a", **HOST_RULE)
    host.add("b", **WEB)
    assert host.firewall.replace_all([], None) == BatchOutcome(0, 2, 0, ())
    assert host.ids() == [] and not host.handles_in_kernel()


def test_an_etag_changes_with_every_change_of_rules_and_with_nothing_else(host: Host) -> None:
    etags = [host.firewall.etag()]
    for change in (
        lambda: host.add("a", **HOST_RULE),
        lambda: host.firewall.replace(host.rule("a", **WEB)),
        lambda: host.firewall.delete("a"),
        lambda: host.firewall.batch([host.rule("b")], []),
        lambda: host.firewall.replace_all([], None),
    ):
        change()
        etags.append(host.firewall.etag())
    host.firewall.attach("eth0", "auto", True, True)
    assert host.firewall.etag() == etags[-1]
    assert len(set(etags)) == len(etags)
    assert host.firewall.export()[1] == etags[-1]
    assert re.fullmatch(r'"[0-9a-f]{8}-5"', etags[-1])


@pytest.mark.parametrize("header", ["{}", "*", " * ", '"other", {}', '{},"other"', " {} "])
def test_a_rule_set_is_replaced_where_the_etag_is_among_those_given(host: Host, header: str) -> None:
    host.add("a", **WEB)
    host.firewall.replace_all([], header.replace("{}", host.firewall.etag()))
    assert host.ids() == []


@pytest.mark.parametrize("header", ["", '"other"', "W/{}", '""'])
def test_a_rule_set_that_changed_is_not_replaced(host: Host, header: str) -> None:
    host.add("a", **WEB)
    before = host.state()
    with pytest.raises(PreconditionFailed, match="the rule set is ") as raised:
        host.firewall.replace_all([], header.replace("{}", host.firewall.etag()))
    assert raised.value.code == "ruleset_changed" and raised.value.hint
    assert host.state() == before


# --- full tables


def full(host: Host, *rules: dict[str, Any]) -> TableFull:
    """What is raised where these rules are added, or put, and that nothing was written."""
    made = [host.rule(f"x{n}", **each) for n, each in enumerate(rules)]
    before, reserved = host.state(), len(host.kernel.reserved)
    present = [*host.firewall.export()[0]]
    for call in (
        lambda: host.firewall.batch(made, []),
        lambda: host.firewall.replace_all([*present, *made], None),
        *([lambda: host.firewall.add(made[0])] if len(made) == 1 else []),
    ):
        with pytest.raises(TableFull) as raised:
            call()
        assert host.state() == before and len(host.kernel.reserved) == reserved
    return raised.value


@pytest.mark.parametrize(("version", "network"), [(4, "10.0.0."), (6, "2001:db8::")])
def test_a_full_address_table_is_named_before_anything_is_written(
    idle_host: Host, version: int, network: str
) -> None:
    host = small(idle_host, addresses=3)
    host.add("a", sources=[f"{network}{n}" for n in (1, 2, 3)])
    error = full(host, {"sources": f"{network}4"})
    assert (error.table, error.capacity, error.wanted) == (f"address{version}", 3, 4)
    assert (error.setting, error.code) == ("bpf.max_addresses", "table_full")
    assert error.detail == f"address{version} holds at most 3 addresses and this change makes 4"
    assert error.hint == "raise bpf.max_addresses in the config and restart, or delete rules"
    host.add("b", sources=f"{network}3")  # the same prefix takes no room
    host.add("c", sources="192.0.2.1" if version == 6 else "2001:db8:1::1")  # nor does the other family
    host.firewall.batch([host.rule("d", sources=f"{network}9")], ["a"])


def test_one_rule_in_both_directions_takes_two_entries(idle_host: Host) -> None:
    host = small(idle_host, addresses=3)
    host.add("a", sources="10.0.0.1", direction="both")
    assert full(host, {"sources": "10.0.0.2", "direction": "both"}).wanted == 4


@pytest.mark.parametrize("limit", [1, 2, 63, 64, 65, 128])
def test_a_full_policy_is_named_before_anything_is_written(idle_host: Host, limit: int) -> None:
    host = small(idle_host, rules=limit)
    host.firewall.batch([host.rule(f"r{n}", destination_ports=[n]) for n in range(limit)], [])
    for count in (1, 2 * limit + 1):
        error = full(host, *({"destination_ports": [n], "protocols": "udp"} for n in range(count)))
        assert (error.table, error.capacity, error.wanted) == ("policy_rules", limit, limit + count)
        assert error.setting == "bpf.max_rules"
        assert (
            error.detail == f"policy_rules holds at most {limit} rules and this change makes {limit + count}"
        )
    host.add("a", **HOST_RULE)
    host.firewall.batch([host.rule("b", **WEB, protocols="udp")], ["r0"])


def test_an_edit_may_fill_a_table_too(idle_host: Host) -> None:
    host = small(idle_host, addresses=1, rules=1)
    host.add("a", **HOST_RULE)
    host.add("b", **WEB)
    host.add("off", **WEB, enabled=False)
    before = host.state()
    for change in ({"sources": ["10.0.0.1", "10.0.0.2"]}, {"protocols": "tcp"}):
        with pytest.raises(TableFull):
            host.firewall.replace(host.rule("a", **change))
    with pytest.raises(TableFull):
        host.firewall.replace(host.rule("off", **WEB))
    assert host.state() == before


def test_rules_can_be_deleted_one_by_one_after_the_limits_were_lowered(idle_host: Host) -> None:
    host = idle_host
    host.start()
    for number in range(4):
        host.add(f"a{number}", sources=f"10.0.0.{number}")
    host.stop()
    small(host, addresses=2)
    for number in range(4):
        host.firewall.delete(f"a{number}")


def test_a_start_with_fewer_policy_rules_than_are_stored_names_the_setting(idle_host: Host) -> None:
    host = idle_host
    host.start()
    host.firewall.batch([host.rule(f"r{n}", destination_ports=[n]) for n in range(70)], [])
    host.stop()
    for limit in (64, 69, 1):
        with pytest.raises(TableFull, match=f"policy_rules holds at most {limit} rules") as raised:
            host.start(bpf={"max_rules": limit})
        assert raised.value.setting == "bpf.max_rules"
        host.stop()
    host.start(bpf={"max_rules": 70})
    assert len(host.handles_in_kernel()) == 70


def test_room_is_asked_for_before_a_change_for_the_old_and_the_new_entries(host: Host) -> None:
    host.add("a", sources=["10.0.0.1", "10.0.0.2"])
    host.firewall.replace(host.rule("a", sources=["10.0.0.3", "2001:db8::1"]))
    assert host.kernel.reserved[-1][0] == {4: 3, 6: 1}


# --- reads


def test_a_listing_is_paged_filtered_and_in_order_of_creation(host: Host) -> None:
    for number in range(5):
        host.add(f"r{number}", sources=f"10.0.0.{number}", action="allow" if number % 2 else "drop")
    views, total = host.firewall.rules(RuleQuery(action="drop"), 1, 1)
    assert ([view.rule.id for view in views], total) == (["r2"], 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", ["host", "net", "egress", "policy", "off", "both-families"]),
        ("10.0.0.0/31", ["net", "policy", "both-families"]),
        ("10.0.0.0/7", ["both-families"]),
        ("2001:db8::1", ["both-families"]),
        ("192.0.2.1", ["both-families"]),
    ],
)
def test_rules_that_cover_an_address_are_found_whatever_holds_them(
    host: Host, text: str, expected: list[str]
) -> None:
    host.add("host", sources="10.0.0.1")
    host.add("net", destinations="10.0.0.0/8")
    host.add("egress", sources="10.0.0.1", direction="egress")
    host.add("policy", sources="10.0.0.0/24", **WEB)
    host.add("off", sources="10.0.0.1", enabled=False)
    host.add("both-families", sources=["0.0.0.0/0", "::/0"])
    host.add("any", protocols="tcp")
    views, total = host.firewall.rules(RuleQuery(address=parse_prefix(text)), 0, 100)
    assert [view.rule.id for view in views] == expected and total == len(expected)


def test_an_export_is_of_one_moment(host: Host) -> None:
    host.add("a", **WEB)
    rules, etag = host.firewall.export()
    host.firewall.delete("a")
    assert [each.id for each in rules] == ["a"]
    assert etag != host.firewall.etag()


def test_no_change_waits_for_an_export(host: Host) -> None:
    """It is read as it is asked for, which is as slowly as a client likes."""
    for number in range(20):
        host.add(f"r{number}", **WEB)
    rules, _ = host.firewall.export()
    next(rules)
    with host.firewall._lock:  # as a change that takes long
        in_another: list[int] = []
        thread = threading.Thread(target=lambda: in_another.append(len([*host.firewall.export()[0]])))
        thread.start()
        thread.join(10)
        assert in_another == [20], "nor it for a change"
    host.add("meanwhile", **WEB)
    assert len([*rules]) == 19


def test_the_fill_of_the_tables_is_told(idle_host: Host) -> None:
    host = small(idle_host)
    host.add("a", sources=["10.0.0.1", "2001:db8::1", "2001:db8::2"])
    host.add("b", **WEB)
    fills = {each.name: (each.used, each.setting) for each in host.firewall.fills()}
    assert fills["address4"] == (1, "bpf.max_addresses")
    assert fills["address6"] == (2, "bpf.max_addresses")
    assert fills["policy_rules"] == (1, "bpf.max_rules")
