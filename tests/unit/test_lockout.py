"""Whom a change would lock out: SSH sessions, the client that asks, the API's own port; and nobody else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from firewall import lockout
from firewall.address_list import parse_list
from firewall.caution import Caution
from firewall.datapath import Connection
from firewall.errors import Lockout
from firewall.lockout import Listener
from firewall.view import Effect
from tests import random_rules
from tests.unit.host import Host

HERE, OPERATOR = 0x0A000001, 0xCB007109  # 10.0.0.1, 203.0.113.9
SSH = Connection(4, HERE, 22, OPERATOR, 51000, is_ssh=True)
SSH6 = Connection(6, 1 << 120, 22, (0x20010DB8 << 96) + 9, 51000, is_ssh=True)
CLIENT = Connection(4, 0x7F000001, 9378, 0x7F000001, 40000)
API = Listener(4, 0x7F000001, 9378)


def ask(host: Host, call: Callable[[], Any], **asked: Any) -> Any:
    return host.firewall.cautiously(Caution("a change", **asked), call)


def adding(host: Host, rule_id: str = "r", **fields: Any) -> Callable[[], Any]:
    return lambda: host.firewall.add(host.rule(rule_id, **fields))


def refusal(host: Host, call: Callable[[], Any], **asked: Any) -> Lockout:
    before = host.state()
    with pytest.raises(Lockout) as refused:
        ask(host, call, **asked)
    assert host.state() == before
    return refused.value


@pytest.fixture
def reached(idle_host: Host) -> Host:
    """eth0 is protected, and an operator is on it by SSH."""
    idle_host.kernel.live = [SSH, SSH6]
    idle_host.start(interfaces=[{"name": "eth0"}])
    return idle_host


@pytest.mark.parametrize(
    "fields",
    [
        {"sources": "203.0.113.9"},
        {"sources": "203.0.113.0/24"},
        {"sources": "0.0.0.0/0"},
        {"sources": "2001:db8::/32"},
        {"destinations": "10.0.0.1"},
        {"direction": "egress", "destinations": "203.0.113.9"},
        {"direction": "both", "protocols": ["tcp"]},
        {"destination_ports": [22]},
        {"destination_ports": ["20-30"], "interfaces": ["eth*"]},
        {"direction": "egress", "source_ports": ["22"], "tcp_flags": {"set": ["ack"]}},
        {"sources": "203.0.113.9", "protocols": ["tcp"], "source_ports": ["51000"]},
        {},
    ],
    ids=str,
)
def test_a_rule_that_drops_an_ssh_session_is_refused_and_told(reached: Host, fields: dict[str, Any]) -> None:
    error = refusal(reached, adding(reached, "cut", **fields))
    assert error.code == "lockout" and "'cut'" in error.detail and "SSH session" in error.detail
    assert "allow_lockout" in error.hint and error.connections
    ask(reached, adding(reached, "cut", **fields), allow_lockout=True)
    assert reached.ids() == ["cut"]


@pytest.mark.parametrize(
    "fields",
    [
        {"sources": "203.0.113.10"},
        {"sources": "10.0.0.1"},  # comes from there, not from here
        {"direction": "egress", "sources": "203.0.113.9"},
        {"destination_ports": [23]},
        {"protocols": ["udp"]},
        {"sources": "203.0.113.9", "tcp_flags": {"set": ["syn"]}},
        {"interfaces": ["eth1"]},
        {"enabled": False},
        {"action": "allow"},
        {"sources": "203.0.113.9", "mode": "observe"},
        {"icmp_types": ["8"]},
    ],
    ids=str,
)
def test_a_rule_that_drops_others_is_not_refused(reached: Host, fields: dict[str, Any]) -> None:
    ask(reached, adding(reached, "r", **fields))
    assert reached.ids() == ["r"]


def test_a_rule_that_observes_is_not_promoted_where_it_would_cut_off_a_session(reached: Host) -> None:
    ask(reached, adding(reached, "cut", sources="203.0.113.9", mode="observe"))
    assert "'cut'" in refusal(reached, lambda: reached.firewall.promote("cut")).detail
    ask(reached, lambda: reached.firewall.promote("cut"), allow_lockout=True)


def test_the_connection_is_named_with_both_ends(reached: Host) -> None:
    error = refusal(reached, adding(reached, "cut", sources="203.0.113.9"))
    assert "the SSH session 203.0.113.9:51000 to 10.0.0.1:22 at ingress of eth0" in error.detail
    assert error.connections[0] == lockout_view(error)
    error = refusal(reached, adding(reached, "cut", sources="2001:db8::9"))
    assert "[2001:db8::9]:51000" in error.detail


def lockout_view(error: Lockout) -> object:
    from firewall.view import LockoutView

    return LockoutView("cut", "the SSH session 203.0.113.9:51000 to 10.0.0.1:22", "ssh", "eth0", "ingress")


def test_a_session_that_another_rule_lets_through_is_not_cut_off(reached: Host) -> None:
    reached.add("office", action="allow", priority=10, sources="203.0.113.0/24")
    reached.add("office6", action="allow", priority=10, sources="2001:db8::/32")
    ask(reached, adding(reached, "closed", destination_ports=[22]))
    error = refusal(reached, lambda: reached.firewall.delete("office"))
    assert "'closed'" in error.detail
    error = refusal(reached, lambda: reached.firewall.replace(reached.rule("office", action="allow", priority=2000,
                                                                           sources="203.0.113.0/24")))  # fmt: skip
    assert "'closed'" in error.detail
    reached.firewall.batch([], ["closed"])
    ask(reached, lambda: reached.firewall.delete("office"))


def test_what_was_dropped_already_is_no_lockout(reached: Host) -> None:
    reached.add("old", sources="203.0.113.0/24")
    ask(reached, adding(reached, "new", sources="203.0.113.9", priority=1))
    ask(reached, lambda: reached.firewall.edit("old", lambda rule: replace(rule, description="why")))


def test_a_default_drop_that_an_allow_rule_opens_is_told_as_the_default(idle_host: Host) -> None:
    idle_host.kernel.live = [SSH]
    idle_host.start(interfaces=[{"name": "eth0"}], filter={"default_ingress": "drop"})
    idle_host.add("ssh", action="allow", destination_ports=[22])
    error = refusal(idle_host, lambda: idle_host.firewall.delete("ssh"))
    assert "the default action would drop" in error.detail
    error = refusal(idle_host, lambda: idle_host.firewall.replace_all([], None))
    assert "the default action" in error.detail


def test_an_interface_that_carries_the_session_is_not_attached_to_where_the_rules_drop_it(host: Host) -> None:
    host.kernel.live = [SSH]
    host.add("cut", sources="203.0.113.9")
    error = refusal(host, lambda: host.firewall.attach("eth0", "auto", True, True))
    assert "'cut'" in error.detail and "eth0" in error.detail
    ask(host, lambda: host.firewall.attach("eth1", "auto", True, True))
    ask(host, lambda: host.firewall.attach("eth0", "auto", False, True))
    assert refusal(host, lambda: host.firewall.attach("eth0", "auto", True, True))
    ask(host, lambda: host.firewall.attach("eth0", "auto", True, True), allow_lockout=True)


def test_only_the_interface_that_carries_the_connection_counts(reached: Host) -> None:
    reached.kernel.routes[4, OPERATOR] = 3  # eth1, which is not protected
    ask(reached, adding(reached, "r", sources="203.0.113.9"))


def test_an_imported_list_that_covers_the_operator_is_refused(reached: Host) -> None:
    text = "\n".join(f"198.51.{high}.{low}" for high in range(8) for low in range(256))
    ask(reached, lambda: reached.firewall.import_list(parse_list(text), "drop", 500, "ingress"))
    bad = parse_list("192.0.2.1\n203.0.113.0/24\n")
    error = refusal(reached, lambda: reached.firewall.import_list(bad, "drop", 500, "ingress"))
    assert "203.0.113.9:51000" in error.detail
    assert refusal(reached, lambda: reached.firewall.import_list(bad, "drop", 500, "egress"))
    allowed = parse_list("203.0.113.9\n")
    ask(reached, lambda: reached.firewall.import_list(allowed, "allow", 1, "ingress"))
    ask(reached, lambda: reached.firewall.import_list(bad, "drop", 500, "ingress"))


def test_the_client_that_asks_counts_where_loopback_is_protected(idle_host: Host) -> None:
    idle_host.start(interfaces=[{"name": "lo"}])
    for fields in (
        {"sources": "127.0.0.0/8"},
        {"direction": "egress", "protocols": ["tcp"]},
        {"source_ports": [9378]},
    ):
        error = refusal(idle_host, adding(idle_host, **fields), client=CLIENT)
        assert "the API client 127.0.0.1:40000" in error.detail
        ask(idle_host, adding(idle_host, "by-socket", **fields))
        idle_host.firewall.delete("by-socket")


def test_plain_rules_are_not_refused_to_a_client_on_a_loopback_that_is_not_protected(reached: Host) -> None:
    reached.kernel.live = []
    reached.firewall.listens_on([API])
    for fields in (
        {"protocols": ["tcp"]},
        {"destination_ports": ["9000-9400"]},
        {},
        {"sources": "127.0.0.1"},
    ):
        ask(reached, adding(reached, **fields), client=CLIENT)
        reached.firewall.delete("r")


@pytest.mark.parametrize(
    ("fields", "is_refused"),
    [
        ({"destination_ports": [9378]}, True),
        ({"destination_ports": [22, "9378"], "protocols": ["tcp"]}, True),
        ({"destination_ports": [9378], "direction": "both", "destinations": "127.0.0.1"}, True),
        ({"destination_ports": ["9378-9379"]}, False),
        ({"destination_ports": [9379]}, False),
        ({"destination_ports": [9378], "protocols": ["udp"]}, False),
        ({"destination_ports": [9378], "sources": "203.0.113.0/24"}, False),
        ({"destination_ports": [9378], "destinations": "10.0.0.1"}, False),
        ({"destination_ports": [9378], "interfaces": ["eth0"]}, False),
        ({"destination_ports": [9378], "action": "allow"}, False),
        ({"destination_ports": [9378], "enabled": False}, False),
        ({"destination_ports": [9378], "family": "ipv6"}, False),
        ({"destination_ports": [9378], "direction": "egress"}, False),
    ],
    ids=str,
)
def test_a_drop_rule_that_names_the_port_of_the_api_is_refused(
    host: Host, fields: dict[str, Any], is_refused: bool
) -> None:
    host.firewall.listens_on([API])
    if is_refused:
        assert "new connections to 127.0.0.1:9378" in refusal(host, adding(host, **fields)).detail
    else:
        ask(host, adding(host, **fields))


def test_a_rule_about_the_port_of_the_api_may_be_changed_once_it_is_there(host: Host) -> None:
    host.firewall.listens_on([API])
    ask(host, adding(host, destination_ports=[9378]), allow_lockout=True)
    ask(host, lambda: host.firewall.edit("r", lambda rule: replace(rule, description="meant")))


def test_new_connections_to_the_api_count_where_loopback_is_protected(idle_host: Host) -> None:
    idle_host.start(interfaces=[{"name": "lo"}])
    idle_host.firewall.listens_on([API])
    for fields in ({"tcp_flags": {"set": ["syn"], "unset": ["ack"]}}, {"destination_ports": ["9000-9400"]}):
        assert "new connections to 127.0.0.1:9378" in refusal(idle_host, adding(idle_host, **fields)).detail


def test_what_the_service_does_of_itself_is_not_asked(reached: Host) -> None:
    reached.add("cut", sources="203.0.113.9")  # no client asks
    assert reached.ids() == ["cut"]


def test_the_live_connections_are_read_once_a_second_at_most(
    reached: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("firewall.enforcer.Enforcer._steady", staticmethod(lambda: now))
    reached.firewall._management._clock = lambda: now
    asked: list[float] = []

    def sessions() -> list[Connection]:
        asked.append(now)
        return [SSH]

    monkeypatch.setattr(reached.kernel, "ssh_sessions", sessions)
    for number in range(5):
        ask(reached, adding(reached, f"r{number}", sources=f"192.0.2.{number}"))
    assert len(asked) <= 1
    now += 1.1
    ask(reached, adding(reached, "later", sources="192.0.2.99"))
    assert asked[-1] == now


@pytest.mark.parametrize("seed", range(40))
def test_the_short_look_at_a_few_rules_misses_no_lockout(idle_host: Host, seed: int) -> None:
    """Against all packets judged by all rules."""
    host, rng = idle_host, random.Random(seed)
    pool = [int.from_bytes(bytes(map(int, each.split("."))), "big") for each in random_rules.V4_ADDRESSES]
    host.kernel.live = [Connection(4, rng.choice(pool), 22, rng.choice(pool), 8000, True) for _ in range(6)]
    host.start(interfaces=[{"name": "eth0"}])
    rules = [{k: v for k, v in each.items() if k != "id"} for each in random_rules.random_rules(rng, 30)]
    for number, fields in enumerate(rules[:20]):
        host.add(f"r{number}", **fields)
    new = [host.rule(f"r{n}", **fields) for n, fields in enumerate(rules[20:], rng.randrange(25))]
    gone = [each.id for each in new if each.id in host.ids()]
    told = ask(host, lambda: host.firewall.batch(new, gone), dry_run=True).effect
    packets = host.firewall._management.packets(None)
    before = [lockout.passes(each.packet, host.firewall._ruleset, (0, 0)) for each in packets]
    host.firewall.batch(new, gone)
    after = [lockout.passes(each.packet, host.firewall._ruleset, (0, 0)) for each in packets]
    assert len(told.lockouts) == sum(b and not a for b, a in zip(before, after, strict=True))


# --- changes that are only tried


def test_a_change_that_is_only_tried_tells_its_effect_and_changes_nothing(reached: Host) -> None:
    reached.add("a", sources="10.1.0.1")
    reached.add("b", destination_ports=[80], priority=5)
    before = reached.state()
    rules = [
        reached.rule("a", sources="10.1.0.1"),
        reached.rule("b", destination_ports=[81]),
        reached.rule("n"),
    ]
    done = ask(reached, lambda: reached.firewall.replace_all(rules, None), dry_run=True)
    assert done.value is None and done.pending is None
    assert (done.effect.added, done.effect.changed, done.effect.removed, done.effect.unchanged) == (
        1,
        1,
        0,
        1,
    )
    assert {each.rule for each in done.effect.lockouts} == {"n"}
    assert reached.state() == before
    done = ask(reached, lambda: reached.firewall.batch([], ["a"]), dry_run=True, confirm_within_s=60)
    assert done.effect == Effect(removed=1) and reached.state() == before


def test_rules_that_can_never_win_are_told(host: Host) -> None:
    host.add("wide", sources="10.0.0.0/8", priority=5)
    host.add("tcp", protocols=["tcp"], destination_ports=["1-1000"], priority=5, direction="both")
    new = [
        host.rule("under", sources="10.1.0.0/16"),
        host.rule("under-policy", sources=["10.1.0.0/16", "10.2.0.1"], protocols=["udp"]),
        host.rule("ssh", protocols=["tcp"], destination_ports=[22, "80-90"]),
        host.rule("beside", sources=["10.1.0.0/16", "11.0.0.1"]),
        host.rule("better", sources="10.1.0.0/16", priority=4),
        host.rule("both", sources="10.1.0.0/16", direction="both"),
        host.rule("udp-too", destination_ports=[22]),
        host.rule("off", sources="10.1.0.0/16", enabled=False),
    ]
    effect = ask(host, lambda: host.firewall.batch(new, []), dry_run=True).effect
    found = {each.rule: each.by for each in effect.shadowed}
    assert found == {"under": "better", "under-policy": "better", "ssh": "tcp"}


def test_rules_of_one_change_may_beat_each_other_and_several_together_one(host: Host) -> None:
    host.add("low", protocols=["tcp"], destination_ports=["1-500"], priority=5)
    new = [
        host.rule("halves", sources=["10.0.0.0/9", "10.128.0.0/9"], priority=4),
        host.rule("whole", sources=["10.0.0.0/9", "10.128.0.1"], priority=6),
        host.rule("net", sources="192.0.2.0/24", protocols=["udp"], priority=4),
        host.rule("host", sources="192.0.2.1", protocols=["udp"], destination_ports=[53], priority=6),
    ]
    effect = ask(host, lambda: host.firewall.batch(new, []), dry_run=True).effect
    assert {each.rule: each.by for each in effect.shadowed} == {"whole": "halves", "host": "net"}
    before = host.state()
    host.firewall.batch(new, ["low"])
    gone = ask(host, lambda: host.firewall.delete("halves"), dry_run=True).effect
    assert (gone.removed, gone.shadowed) == (1, ())
    assert before != host.state()


def test_an_import_that_is_only_tried_counts_what_is_new(host: Host) -> None:
    columns = parse_list("192.0.2.1\n192.0.2.2\n")
    host.firewall.import_list(parse_list("192.0.2.1\n"), "drop", 1000, "ingress")
    done = ask(host, lambda: host.firewall.import_list(columns, "drop", 1000, "ingress"), dry_run=True)
    assert (done.effect.added, done.effect.unchanged) == (1, 1)
    assert len(host.ids()) == 1
