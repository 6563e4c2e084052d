"""never_drop and panic over a kernel in memory: what is stored, what the kernel holds, and when panic ends."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.wiring import about, manner
from firewall.address import parse_prefix
from firewall.caution import Caution
from firewall.datapath import Connection, Entry, Key
from firewall.errors import FirewallError
from firewall.layout import C
from firewall.settings import Settings
from firewall.shield import Panic, management
from tests.unit.host import NOW, Host, wait_for

SPARED = Entry(C["RANK_NEVER_DROP"], 0)
SSH = Connection(4, 0xC0000201, 22, 0xC6336407, 50_000, True)
WEB = Connection(4, 0xC0000201, 443, 0xC6336408, 50_001)
SEEN = {"sources": ["198.51.100.0/24"], "protocols": ["tcp"], "destination_ports": [80]}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, filter={"never_drop": ["192.0.2.1", "2001:db8::/32"]})
    host.kernel.live = [SSH, WEB]
    host.start()
    yield host
    host.stop()


def keys(prefix: str) -> list[Key]:
    version, address, length = parse_prefix(prefix)
    return [Key(version, scope, length, address) for scope in (0, 3)]


def reload(host: Host, **filter_settings: Any) -> None:
    settings = Settings.model_validate({**host.settings.model_dump(), "filter": filter_settings})
    host.firewall.reload(about(settings), manner(settings), settings.interfaces)
    host.settings = settings


def panics(host: Host) -> bool:
    return all(each & C["OPTION_PANIC"] for each in host.kernel.options)


def bits(host: Host, hook: int = 0) -> int:
    assert host.kernel.policy is not None
    return int((host.kernel.policy.hooks[hook].rules["rank"] != 0).sum())


def test_never_drop_stands_for_sources_at_ingress_and_destinations_at_egress(host: Host) -> None:
    wanted = [*keys("192.0.2.1"), *keys("2001:db8::/32")]
    assert host.kernel.entries == dict.fromkeys(wanted, SPARED)
    assert host.firewall.status().never_drop == ("192.0.2.1", "2001:db8::/32")
    assert host.firewall.count() == 0 and host.ids() == []


def test_never_drop_wins_over_a_rule_of_its_prefix_and_gives_it_back(host: Host) -> None:
    host.add("r", sources=["192.0.2.1"], priority=0)
    assert host.kernel.entries[keys("192.0.2.1")[0]] == SPARED
    reload(host, never_drop=[])
    assert host.kernel.entries == {keys("192.0.2.1")[0]: Entry(C["RANK_FIRST"], host.handle("r"))}
    host.hit("192.0.2.1", 3)
    reload(host, never_drop="192.0.2.1")
    assert host.kernel.entries[keys("192.0.2.1")[0]] == SPARED
    assert host.packets("r") == 3
    host.firewall.delete("r")
    assert host.kernel.entries == dict.fromkeys(keys("192.0.2.1"), SPARED)


def test_a_rule_on_what_is_never_dropped_can_never_win(host: Host) -> None:
    rule = host.rule("try", sources="192.0.2.1")
    effect = host.firewall.cautiously(
        Caution("a change", dry_run=True), lambda: host.firewall.add(rule)
    ).effect
    assert effect is not None
    assert [(each.rule, each.by) for each in effect.shadowed] == [("try", None)]


def test_a_reload_that_the_kernel_refuses_leaves_never_drop_as_it_was(host: Host) -> None:
    before = host.state()
    host.kernel.refuse = {"apply": errno.ENOMEM}
    with pytest.raises(FirewallError):
        reload(host, never_drop=["203.0.113.1"])
    host.kernel.refuse = {}
    assert host.state() == before and host.firewall.status().never_drop == ("192.0.2.1", "2001:db8::/32")


def test_panic_keeps_ssh_and_the_api_and_nothing_else(host: Host) -> None:
    host.add("seen", **SEEN)
    view = host.firewall.panic_on(600)
    assert (view.on, view.until, view.left_s, view.connections) == (True, NOW + 600, 600, 1)
    assert panics(host) and host.firewall.status().panic == view
    # The API's address, both ways, and the session.
    assert (bits(host, 0), bits(host, 1)) == (3, 3)
    assert host.firewall.not_ready() == []
    assert not host.firewall.panic_off().on
    assert not panics(host) and host.kernel.policy is host.firewall._ruleset.policy


def test_changes_in_panic_wait_for_its_end(host: Host) -> None:
    host.firewall.panic_on(600)
    panicking = host.kernel.policy
    host.add("seen", **SEEN)
    host.add("address", sources=["198.51.100.9"])
    host.firewall.delete("seen")
    host.add("seen", **SEEN)
    assert host.kernel.policy is panicking
    host.firewall.panic_off()
    assert host.handles_in_kernel() == {0, host.handle("seen"), host.handle("address")}


def test_panic_ends_by_itself(host: Host) -> None:
    host.firewall.panic_on(60)
    host.now += 59
    assert panics(host)
    host.now += 1
    wait_for(lambda: not host.firewall.panic().on)
    assert not panics(host)


def test_panic_goes_on_after_a_kill_and_keeps_the_same_connections(host: Host) -> None:
    host.add("seen", **SEEN)
    host.hit_policy("seen", 5)
    host.firewall.panic_on(60)
    assert host.packets("seen") == 5
    host.kill()
    host.kernel.live = []
    host.now += 30
    host.start()
    assert panics(host) and bits(host) == 3
    assert host.firewall.panic().left_s == 30 and host.packets("seen") == 5
    host.now += 30
    wait_for(lambda: not host.firewall.panic().on)
    assert host.handles_in_kernel() == {0, host.handle("seen")} and host.packets("seen") == 5


def test_panic_whose_time_came_while_nothing_ran_is_off_at_the_start(host: Host) -> None:
    host.firewall.panic_on(60)
    host.kill()
    host.now += 61
    host.start()
    assert not panics(host) and not host.firewall.panic().on and "panic" not in host.stored(audit=False)


def test_panic_that_the_kernel_refuses_changes_nothing(host: Host) -> None:
    host.add("seen", **SEEN)
    before = host.state()
    host.kernel.refuse = {"apply": errno.ENOMEM}
    with pytest.raises(FirewallError):
        host.firewall.panic_on(60)
    host.kernel.refuse = {}
    assert host.state() == before and not panics(host) and not host.firewall.panic().on


def test_a_reload_in_panic_does_not_end_it(host: Host) -> None:
    host.firewall.panic_on(60)
    reload(host, default_ingress="allow", fragments="drop", never_drop="203.0.113.1")
    assert panics(host) and host.kernel.options[0] & C["OPTION_FRAGMENTS_DROP"]
    assert keys("203.0.113.1")[0] in host.kernel.entries
    host.firewall.panic_off()
    assert host.kernel.options == (host.kernel.options[0],) * 2
    assert host.kernel.options[0] & C["OPTION_FRAGMENTS_DROP"] and not panics(host)


def test_panic_lasts_no_longer_than_its_time_where_the_clock_goes_back() -> None:
    panic = Panic(NOW, 60, (SSH,))
    assert Panic.decoded(panic.encoded()) == panic
    assert [panic.left_s(NOW + at) for at in (0, 20, 60, -30, -61)] == [60, 40, 0, 60, 0]


def test_panic_keeps_the_apis_connections_also_where_it_listens_on_every_address() -> None:
    here, other = (
        Connection(4, 0xC0000201, 9443, 0xC6336408, 5),
        Connection(4, 0xC0000201, 9444, 0xC6336408, 6),
    )
    for listening in (parse_prefix("0.0.0.0"), parse_prefix("192.0.2.1")):
        assert management([here, other, SSH, WEB], [(listening, 9443)]) == (SSH, here)
    assert management([here], [(parse_prefix("::"), 9443)]) == ()
