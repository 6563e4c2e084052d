"""Interfaces through the enforcer: modes and refusals, links that come and go, rules that name them."""

from __future__ import annotations

import errno
from dataclasses import astuple
from typing import Any

import pytest

from firewall.datapath import Attached, Link
from firewall.errors import Conflict, InvalidInput, KernelRefused, NotFound, Problem, StoreFailed
from firewall.hits import InterfaceHits
from tests.unit.failing_database import fail_on
from tests.unit.host import Host, wait_for

BOTH = {"ingress": "native", "egress": "clsact"}


def named(host: Host) -> set[int]:
    """ifindexes for which the image has a vector of their own at ingress."""
    policy = host.kernel.policy
    assert policy is not None
    return set(policy.hooks[0].interfaces)


def requested(host: Host) -> set[str]:
    """Names that the store keeps a request for."""
    return set(host.firewall._store.interfaces())


# --- attaching through the API


def test_an_interface_is_attached_on_both_hooks_and_told(host: Host) -> None:
    view = host.firewall.attach("eth0", "auto", True, True)
    assert host.kernel.on("eth0") == BOTH
    assert (view.name, view.ifindex, view.present, view.mode) == ("eth0", 2, True, "auto")
    assert (view.ingress, view.egress, view.actual_mode, view.native_unavailable) == (
        True,
        True,
        "native",
        None,
    )
    assert [(hook.hook, hook.attached, hook.mode, hook.program_id, hook.error) for hook in view.hooks] == [
        ("ingress", True, "native", 40, None),
        ("egress", True, "clsact", 41, None),
    ]
    assert host.firewall.interfaces() == [view] == [host.firewall.interface("eth0")]
    assert host.kernel.counted.keys() == {2}
    assert host.firewall.not_ready() == []


@pytest.mark.parametrize(
    ("ingress", "egress", "on"), [(True, False, {"ingress": "native"}), (False, True, {"egress": "clsact"})]
)
def test_only_the_hooks_that_are_asked_for_are_attached(
    host: Host, ingress: bool, egress: bool, on: dict[str, str]
) -> None:
    host.firewall.attach("eth0", "auto", ingress, egress)
    assert host.kernel.on("eth0") == on
    host.firewall.attach("eth0", "auto", True, True)
    assert host.kernel.on("eth0") == BOTH
    host.firewall.attach("eth0", "auto", ingress, egress)
    assert host.kernel.on("eth0") == on
    assert host.firewall.not_ready() == []


def test_neither_hook_is_no_request(host: Host) -> None:
    before = host.state()
    with pytest.raises(InvalidInput) as raised:
        host.firewall.attach("eth0", "auto", False, False)
    assert raised.value.code == "no_hook"
    assert raised.value.problems == (Problem("/ingress", "ingress and egress cannot both be false"),)
    assert host.state() == before


def test_an_interface_that_is_not_there_is_told_with_those_that_are(host: Host) -> None:
    before = host.state()
    with pytest.raises(NotFound, match="there is no interface 'nic9'") as raised:
        host.firewall.attach("nic9", "auto", True, True)
    assert raised.value.code == "interface_not_found"
    assert raised.value.hint == "this host has lo, eth0, eth1, wg0"
    assert host.state() == before


def test_auto_falls_back_to_generic_and_says_why(host: Host) -> None:
    host.kernel.no_native.add("eth0")
    view = host.firewall.attach("eth0", "auto", True, True)
    assert (view.mode, view.actual_mode) == ("auto", "generic")
    assert "EOPNOTSUPP" in (view.native_unavailable or "") and "generic" in (view.native_unavailable or "")
    assert host.firewall.not_ready() == []


def test_native_does_not_fall_back(host: Host) -> None:
    host.kernel.no_native.add("eth0")
    before = host.state()
    with pytest.raises(KernelRefused, match="EOPNOTSUPP") as raised:
        host.firewall.attach("eth0", "native", True, True)
    assert raised.value.errno == errno.EOPNOTSUPP and raised.value.hint
    assert host.state() == before


@pytest.mark.parametrize("before", ["auto", "native", "generic"])
@pytest.mark.parametrize("after", ["native", "generic"])
def test_a_mode_is_changed_to_the_one_asked_for(host: Host, before: str, after: str) -> None:
    host.firewall.attach("eth0", before, True, True)
    assert host.firewall.attach("eth0", after, True, True).actual_mode == after
    assert host.kernel.on("eth0")["ingress"] == after


def test_another_mode_that_is_refused_leaves_the_one_before(host: Host) -> None:
    host.firewall.attach("eth0", "generic", True, False)
    before = host.state()
    for mode, ingress in (("offload", True), ("native", True)):
        host.kernel.no_native.add("eth0")
        with pytest.raises(KernelRefused):
            host.firewall.attach("eth0", mode, ingress, True)
        assert host.state() == before
    assert host.firewall.interface("eth0").mode == "generic"


def test_offload_is_never_chosen_by_itself(host: Host) -> None:
    with pytest.raises(KernelRefused, match="cannot offload") as raised:
        host.firewall.attach("eth0", "offload", True, True)
    assert raised.value.code == "offload_unavailable"


def test_a_program_of_others_is_a_conflict_and_stays(host: Host) -> None:
    theirs = Attached(7, "other", "native", False)
    host.kernel.hooks["eth0", 0] = theirs
    before = host.state()
    with pytest.raises(Conflict, match="another XDP program is on eth0") as raised:
        host.firewall.attach("eth0", "auto", True, True)
    assert raised.value.code == "program_conflict"
    assert host.state() == before and host.kernel.hooks["eth0", 0] == theirs
    host.firewall.attach("eth0", "auto", False, True)
    host.firewall.detach("eth0")
    assert host.kernel.hooks == {("eth0", 0): theirs}


# --- detaching


def test_a_detached_interface_is_gone_from_everything(host: Host) -> None:
    before = host.state(audit=False)
    host.firewall.attach("eth0", "auto", True, True)
    host.firewall.detach("eth0")
    assert host.state(audit=False) == before
    with pytest.raises(NotFound):
        host.firewall.interface("eth0")


def test_what_is_not_protected_cannot_be_detached(host: Host) -> None:
    with pytest.raises(NotFound, match="'eth0' is not protected") as raised:
        host.firewall.detach("eth0")
    assert raised.value.code == "interface_not_found"


def test_what_a_detached_interface_counted_stays(host: Host) -> None:
    host.firewall.attach("eth0", "auto", True, True)
    host.kernel.counted[2] = [InterfaceHits(0, 1, 1, 7, 700)]
    host.firewall.detach("eth0")
    host.firewall.attach("eth0", "auto", True, True)
    host.kernel.counted[2] = [InterfaceHits(0, 1, 1, 3, 300), InterfaceHits(1, 0, 0, 1, 60)]
    told = [astuple(each) for each in host.firewall.counters()]
    assert told == [
        ("ingress", "eth0", "drop", "rule", 10, 1000),
        ("egress", "eth0", "pass", "default", 1, 60),
    ]


# --- config and API


@pytest.fixture
def configured(idle_host: Host) -> Host:
    idle_host.start(
        interfaces=[{"name": "eth0", "mode": "generic", "egress": False}, {"name": "eth*"}, {"name": "late0"}]
    )
    return idle_host


def test_configured_interfaces_are_attached_at_the_start_by_the_first_entry_that_fits(
    configured: Host,
) -> None:
    assert configured.kernel.on("eth0") == {"ingress": "generic"}
    assert configured.kernel.on("eth1") == BOTH
    assert not configured.kernel.on("lo") and not configured.kernel.on("wg0")
    assert [(view.name, view.present) for view in configured.firewall.interfaces()] == [
        ("eth0", True),
        ("eth1", True),
        ("late0", False),
    ]
    assert configured.firewall.not_ready() == [], "an interface that is not there is no fault"
    assert not requested(configured)


def test_the_api_wins_over_the_config_also_after_a_restart(configured: Host) -> None:
    configured.firewall.attach("eth0", "native", True, True)
    for _ in range(2):
        assert configured.kernel.on("eth0") == BOTH
        assert configured.firewall.interface("eth0").mode == "native"
        configured.stop()
        configured.start()


@pytest.mark.parametrize("name", ["eth0", "eth1"])
def test_a_configured_interface_stays_detached_until_it_is_asked_for_again(
    configured: Host, name: str
) -> None:
    configured.firewall.detach(name)
    for _ in range(2):
        assert not configured.kernel.on(name)
        assert name not in [view.name for view in configured.firewall.interfaces()]
        configured.stop()
        configured.start()
    configured.firewall.attach(name, "auto", True, True)
    assert configured.kernel.on(name) == BOTH


def test_a_configured_interface_that_is_not_there_may_be_detached(configured: Host) -> None:
    configured.firewall.detach("late0")
    configured.kernel.add_link("late0", 9)
    configured.kernel.add_link("eth9", 10)
    wait_for(lambda: configured.kernel.on("eth9"))
    assert not configured.kernel.on("late0")


def test_a_request_of_the_api_leaves_no_trace_once_it_is_detached(host: Host) -> None:
    host.firewall.attach("eth0", "auto", True, True)
    assert requested(host) == {"eth0"}
    host.firewall.detach("eth0")
    assert not requested(host)


def test_a_refusal_at_the_start_is_told_and_the_others_are_protected(idle_host: Host) -> None:
    host = idle_host
    host.kernel.hooks["eth0", 0] = Attached(7, "other", "native", False)
    host.start(interfaces=[{"name": "eth*"}])
    assert host.kernel.on("eth1") == BOTH and host.kernel.on("eth0") == {"egress": "clsact"}
    (fault,) = host.firewall.not_ready()
    assert fault.startswith("eth0: ingress is not attached: another XDP program is on eth0")
    ingress, egress = host.firewall.interface("eth0").hooks
    assert not ingress.attached and "another XDP program" in (ingress.error or "")
    assert egress.attached and egress.error is None
    assert not host.firewall.status().ready


# --- links that come, go and change


def test_an_interface_that_comes_is_attached(configured: Host) -> None:
    configured.kernel.add_link("late0", 9)
    wait_for(lambda: configured.kernel.on("late0") == BOTH)
    wait_for(lambda: configured.firewall.interface("late0").present)
    assert configured.kernel.counted.keys() == {2, 3, 9}


def test_an_interface_of_the_api_that_comes_again_is_attached_again(host: Host) -> None:
    host.firewall.attach("eth0", "generic", True, True)
    host.kernel.counted[2] = [InterfaceHits(0, 1, 1, 7, 700)]
    host.kernel.remove_link("eth0")
    wait_for(lambda: 2 not in host.kernel.counted)
    view = host.firewall.interface("eth0")
    assert not view.present and view.ifindex is None and view.actual_mode is None
    assert host.firewall.not_ready() == []
    assert [each.packets for each in host.firewall.counters()] == [7]
    host.kernel.add_link("eth0", 22)
    wait_for(lambda: host.kernel.on("eth0") == {"ingress": "generic", "egress": "clsact"})
    wait_for(lambda: host.firewall.interface("eth0").ifindex == 22)
    assert host.kernel.counted.keys() == {22}


def test_an_interface_that_was_made_anew_between_two_looks_is_attached_again(host: Host) -> None:
    host.firewall.attach("eth0", "auto", True, True)
    host.kernel.host_links = [
        Link(22, "eth0", True, True) if link.name == "eth0" else link for link in host.kernel.host_links
    ]
    host.kernel.hooks.clear()
    wait_for(lambda: host.kernel.on("eth0") == BOTH)
    assert host.kernel.counted.keys() == {22}


@pytest.mark.parametrize(("name", "is_wanted"), [("eth7", True), ("lan0", False)])
def test_an_interface_that_gets_another_name_is_what_that_name_is_asked_to_be(
    idle_host: Host, name: str, is_wanted: bool
) -> None:
    host = idle_host
    host.start(interfaces=[{"name": "eth*"}])
    host.kernel.rename_link("eth0", name)
    names = [name, "eth1"] if is_wanted else ["eth1"]
    wait_for(lambda: sorted(view.name for view in host.firewall.interfaces()) == sorted(names))
    wait_for(lambda: host.kernel.counted.keys() == ({2, 3} if is_wanted else {3}))
    assert host.kernel.on(name) == (BOTH if is_wanted else {})
    assert host.firewall.not_ready() == []


def test_a_program_that_others_took_away_is_told(host: Host) -> None:
    host.stop()
    host.start(service={"on_drift": "report"})
    host.firewall.attach("eth0", "auto", True, True)
    del host.kernel.hooks["eth0", 0]
    assert host.firewall.not_ready() == ["eth0: ingress does not run our program any more: it was detached"]
    wait_for(lambda: host.firewall.status().drift_detected == {"hook": 1})
    status = host.firewall.status()
    assert not status.ready and status.drift == status.not_ready and status.drift_healed == {}
    host.firewall.attach("eth0", "auto", True, True)
    assert host.firewall.not_ready() == []


def test_force_replaces_a_program_of_another_owner(host: Host) -> None:
    host.kernel.hooks["eth0", 0] = Attached(99, "other", "native", False)
    with pytest.raises(Conflict):
        host.firewall.attach("eth0", "auto", True, True)
    host.firewall.attach("eth0", "auto", True, True, force=True)
    assert host.kernel.on("eth0") == BOTH and host.kernel.displaced is None


@pytest.mark.parametrize("fails", ["INSERT INTO interfaces", "COMMIT"])
def test_a_program_that_was_replaced_by_force_comes_back_if_the_change_fails(host: Host, fails: str) -> None:
    other = host.kernel.hooks["eth0", 0] = Attached(99, "other", "native", False)
    with fail_on(host.firewall._store, fails), pytest.raises(StoreFailed):
        host.firewall.attach("eth0", "auto", True, True, force=True)
    assert host.kernel.hooks == {("eth0", 0): other}
    assert requested(host) == set()


# --- rules that name interfaces


def test_a_rule_means_the_protected_interfaces_that_its_globs_fit(host: Host) -> None:
    host.add("a", interfaces=["eth*"])
    assert named(host) == set()
    host.firewall.attach("eth0", "auto", True, True)
    assert named(host) == {2}
    host.firewall.attach("eth1", "auto", True, True)
    assert named(host) == {2, 3}
    host.firewall.detach("eth0")
    assert named(host) == {3}
    host.kernel.remove_link("eth1")
    wait_for(lambda: named(host) == set())
    host.kernel.add_link("eth1", 33)
    wait_for(lambda: named(host) == {33})


@pytest.mark.parametrize("order", ["rule first", "attach first"])
def test_rules_that_name_interfaces_are_compiled_again_after_a_restart(host: Host, order: str) -> None:
    for step in (order, "rule first" if order == "attach first" else "attach first"):
        if step == "rule first":
            host.add("a", interfaces=["eth0"])
        else:
            host.firewall.attach("eth0", "auto", True, True)
    host.stop()
    host.start()
    assert named(host) == {2}


@pytest.mark.parametrize(
    "call",
    [
        lambda host, fields: host.firewall.add(host.rule("new", **fields)),
        lambda host, fields: host.firewall.replace(host.rule("old", **fields)),
    ],
)
def test_a_rule_that_names_an_unknown_interface_is_refused(host: Host, call: Any) -> None:
    host.add("old", protocols="tcp")
    before = host.state()
    with pytest.raises(InvalidInput, match="there is no interface 'nic8'") as raised:
        call(host, {"interfaces": ["eth0", "nic8", "nic9"]})
    assert raised.value.code == "unknown_interface"
    assert raised.value.problems == (
        Problem("/interfaces/1", "there is no interface 'nic8'"),
        Problem("/interfaces/2", "there is no interface 'nic9'"),
    )
    assert raised.value.hint == "this host has eth0, eth1, lo, wg0; a glob may wait for an interface to come"
    assert host.state() == before


def test_a_rule_may_name_what_is_there_or_asked_for_or_a_glob(configured: Host) -> None:
    configured.add("a", interfaces=["wg0", "late0", "nic?", "nic[0-9]", "veth*"])
    configured.kernel.add_link("late0", 9)
    wait_for(lambda: named(configured) == {9})
