"""What rules have counted: after edits, moves, resets, failures and restarts; and which counted nothing for long."""

from __future__ import annotations

import errno

import pytest

from firewall.address_list import parse_list
from firewall.errors import FirewallError, NotFound, StoreFailed
from firewall.view import RuleQuery, RuleView
from tests.unit.failing_database import fail_on
from tests.unit.host import NOW, Host

DAY = 86400.0
WEB = {"destination_ports": [80]}


def import_list(host: Host, text: str) -> list[str]:
    host.firewall.import_list(parse_list(text), "drop", 1000, "ingress")
    return host.ids()


def stats(host: Host, rule_id: str) -> tuple[int, int, float | None]:
    view = host.firewall.rule(rule_id)
    return view.packets, view.bytes, view.last_hit


def unused(host: Host, days: float, **query: object) -> list[str]:
    views, total = host.firewall.rules(RuleQuery(unused_for_s=int(days * DAY), **query), 0, 1000)  # type: ignore[arg-type]
    assert total == len(views)
    return [each.rule.id for each in views]


# --- resetting


def test_a_reset_rule_counts_from_0_and_has_no_last_hit(host: Host) -> None:
    host.add("a", sources="10.0.0.1")
    host.hit("10.0.0.1", 7)
    assert stats(host, "a") == (7, 700, NOW)
    answer = host.firewall.reset_counters("a")
    assert (answer.packets, answer.bytes, answer.last_hit) == (0, 0, None)
    host.now += 60
    host.hit("10.0.0.1", 2)
    assert stats(host, "a") == (2, 200, NOW + 60)
    assert host.kernel.entry_hits  # nothing was written into the maps


def test_a_policy_rule_and_an_imported_one_are_reset_as_well(host: Host) -> None:
    (imported,) = import_list(host, "10.0.0.1\n")
    host.add("web", **WEB)
    host.hit("10.0.0.1", 3), host.hit_policy("web", 4)
    for rule_id in (imported, "web"):
        host.firewall.reset_counters(rule_id)
        assert stats(host, rule_id) == (0, 0, None)
    host.hit("10.0.0.1", 1), host.hit_policy("web", 2)
    assert (host.packets(imported), host.packets("web")) == (1, 2)


def test_a_reset_leaves_other_rules_alone_also_where_they_share_a_prefix(host: Host) -> None:
    host.add("winner", sources="10.0.0.1", priority=1)
    host.add("loser", sources="10.0.0.1")
    host.hit("10.0.0.1", 5)
    host.firewall.reset_counters("loser")
    assert (host.packets("winner"), host.packets("loser")) == (5, 0)
    host.firewall.delete("winner")
    host.hit("10.0.0.1", 2)
    assert host.packets("loser") == 2


def test_a_reset_outlives_edits_and_moves_between_the_structures(host: Host) -> None:
    host.add("a", sources="10.0.0.1")
    host.hit("10.0.0.1", 10)
    host.firewall.reset_counters("a")
    host.hit("10.0.0.1", 1)
    host.firewall.replace(host.rule("a", sources="10.0.0.1", **WEB))
    host.hit_policy("a", 2)
    assert host.packets("a") == 3
    host.firewall.replace(host.rule("a", sources="10.0.0.2"))
    host.hit("10.0.0.2", 4)
    assert host.packets("a") == 7
    host.firewall.edit("a", lambda rule: host.rule("a", sources="10.0.0.2", enabled=False))
    assert host.packets("a") == 7


@pytest.mark.parametrize("end", ["stop", "keep", "kill"])
def test_a_reset_outlives_the_service(host: Host, end: str) -> None:
    host.add("a", sources="10.0.0.1")
    host.add("web", **WEB)
    host.hit("10.0.0.1", 10), host.hit_policy("web", 10)
    host.firewall.reset_counters("a"), host.firewall.reset_counters("web")
    host.hit("10.0.0.1", 1), host.hit_policy("web", 2)
    host.kill() if end == "kill" else host.stop(keep=end == "keep")
    host.start()
    assert (host.packets("a"), host.packets("web")) == (1, 2)


def test_a_rule_whose_maps_were_lost_after_its_reset_counts_from_what_is_left(host: Host) -> None:
    host.add("a", sources="10.0.0.1")
    host.hit("10.0.0.1", 10)
    host.firewall.reset_counters("a")
    host.kill()
    host.kernel.stop()  # the host booted
    host.start()
    host.hit("10.0.0.1", 3)
    assert host.packets("a") == 3
    host.kill()
    host.start()
    assert host.packets("a") == 3


def test_a_reset_that_cannot_be_made_durable_is_none(host: Host) -> None:
    host.add("a", sources="10.0.0.1")
    host.hit("10.0.0.1", 10)
    before = host.stored()
    with fail_on(host.firewall._store, "COMMIT"), pytest.raises(StoreFailed):
        host.firewall.reset_counters("a")
    assert host.packets("a") == 10
    assert host.stored() == before


def test_a_reset_whose_counters_cannot_be_read_is_none(host: Host) -> None:
    host.add("web", **WEB)
    host.hit_policy("web", 10)
    host.kernel.refuse["policy_hits"] = errno.EPERM
    with pytest.raises(FirewallError):
        host.firewall.reset_counters("web")
    host.kernel.refuse.clear()
    assert host.packets("web") == 10


def test_there_is_nothing_to_reset_of_a_rule_that_is_not_there(host: Host) -> None:
    with pytest.raises(NotFound):
        host.firewall.reset_counters("nobody")


def test_what_was_reset_goes_with_the_rule(host: Host) -> None:
    host.add("a", sources="10.0.0.1")
    host.hit("10.0.0.1", 10)
    host.firewall.reset_counters("a")
    host.firewall.delete("a")
    assert host.firewall._store.resets() == {}
    host.add("a", sources="10.0.0.1")
    host.hit("10.0.0.1", 1)
    assert host.packets("a") == 1


def test_a_reset_is_no_change_of_the_rule_set(host: Host) -> None:
    host.add("a", sources="10.0.0.1")
    before = host.firewall.etag()
    host.firewall.reset_counters("a")
    assert host.firewall.etag() == before


# --- unused


def test_rules_that_were_not_hit_for_long_are_listed_by_age(host: Host) -> None:
    (imported, other) = import_list(host, "10.0.0.1\n10.0.0.2\n")
    host.add("used", sources="10.0.0.3")
    host.add("web", **WEB)
    host.add("idle", destination_ports=[81])
    host.add("off", sources="10.0.0.4", enabled=False)
    assert unused(host, 1) == []
    host.now += 2 * DAY
    host.hit("10.0.0.3", 1), host.hit_policy("web", 1), host.hit("10.0.0.1", 1)
    host.add("young", sources="10.0.0.5")
    assert unused(host, 1) == [other, "idle"]
    assert unused(host, 3) == []
    host.now += 2 * DAY
    assert unused(host, 1) == [imported, other, "used", "web", "idle", "young"]
    assert unused(host, 3) == [other, "idle"]


def test_a_reset_rule_is_as_young_as_its_counters(host: Host) -> None:
    host.add("a", sources="10.0.0.1")
    host.now += 2 * DAY
    host.firewall.reset_counters("a")
    assert unused(host, 1) == []
    host.now += 1.5 * DAY
    assert unused(host, 1) == ["a"]


def test_hits_that_the_maps_have_no_more_count_as_use(host: Host) -> None:
    host.add("moved", sources="10.0.0.1")
    host.add("saved", sources="10.0.0.2")
    host.now += 2 * DAY
    host.hit("10.0.0.1", 1), host.hit("10.0.0.2", 1)
    host.firewall.replace(host.rule("moved", sources="10.0.0.1", **WEB))
    assert unused(host, 1) == []
    host.stop()
    host.start()
    assert unused(host, 1) == []


def test_unused_goes_together_with_the_other_filters(host: Host) -> None:
    host.add("a", sources="10.0.0.1", labels={"team": "web"})
    host.add("b", sources="10.0.0.2", action="allow")
    host.add("c", sources="10.0.0.3", direction="egress")
    host.now += 2 * DAY
    assert unused(host, 1, action="allow") == ["b"]
    assert unused(host, 1, direction="egress") == ["c"]
    assert unused(host, 1, label=("team", "web")) == ["a"]
    assert unused(host, 1, enabled=False) == []
    (address,) = host.rule("x", sources="10.0.0.2").sources
    assert unused(host, 1, address=address) == ["b"]


def test_the_pages_of_unused_rules_are_those_of_one_list(host: Host) -> None:
    ids = import_list(host, "".join(f"10.0.1.{at}\n" for at in range(10)))
    host.now += 2 * DAY
    query = RuleQuery(unused_for_s=int(DAY))

    def page(offset: int) -> tuple[list[str], int]:
        views: list[RuleView]
        views, total = host.firewall.rules(query, offset, 4)
        return [each.rule.id for each in views], total

    assert page(0) == (ids[:4], 10)
    host.hit("10.0.1.0", 1)  # would move all others up
    assert page(4) == (ids[4:8], 10)
    assert page(0) == (ids[1:5], 9)
    host.firewall.delete(ids[9])
    assert page(8) == ([], 8)
