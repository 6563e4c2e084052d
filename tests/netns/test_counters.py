"""Counters on the wire: they survive edits, moves, restarts and new programs; a reset starts them at 0."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.netns.topology import wait_until
from tests.netns.traffic import add_rule, assert_blocked, assert_passes, ping, udp
from tests.netns.world import World

MakeWorld = Callable[..., World]
PINGS = 3


def stats(world: World, rule_id: str) -> dict[str, Any]:
    found: dict[str, Any] = world.api.get(f"/v1/rules/{rule_id}").json()["stats"]
    return found


def reset(world: World, rule_id: str) -> dict[str, Any]:
    answer = world.api.post(f"/v1/rules/{rule_id}/reset-counters")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["stats"]
    return found


def drop_pings(world: World) -> None:
    assert_blocked([ping(world)], "with the rule")


def metric(world: World, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(world.api.get("/metrics").text)
    samples = [each for family in families for each in family.samples if each.name == name]
    return sum(each.value for each in samples if labels.items() <= each.labels.items())


def test_counters_survive_edits_and_moves_between_structures(world: World) -> None:
    assert_passes([ping(world)], "before the rule")
    peer = world.link.peer_address(4)
    rule = add_rule(world, id="r", sources=peer)
    drop_pings(world)
    assert stats(world, rule)["packets"] == PINGS
    for at, change in enumerate(
        ({"priority": 5}, {"protocols": "icmp"}, {"description": "x"}, {"protocols": []}), 2
    ):
        assert world.api.patch(f"/v1/rules/{rule}", json=change).status_code == 200
        drop_pings(world)
        assert stats(world, rule)["packets"] == at * PINGS


@pytest.mark.parametrize("how", ["restart", "kill", "programs"])
def test_counters_and_resets_survive_the_service(make_world: MakeWorld, how: str) -> None:
    world = make_world(service={"on_stop": "keep"} if how == "programs" else {})
    peer = world.link.peer_address(4)
    assert_passes([ping(world)], "before the rule")
    add_rule(world, id="r", sources=peer)
    drop_pings(world)
    assert reset(world, "r") == {"packets": 0, "bytes": 0, "last_hit": None}
    drop_pings(world)
    before = stats(world, "r")
    assert before["packets"] == PINGS
    judged = metric(world, "ebpf_fw_packets_total", verdict="drop", reason="rule")
    if how == "kill":
        world.kill9()
    else:
        world.stop()
    if how == "programs":  # other sizes: programs are compiled anew over the maps that are pinned
        world.daemon.configure(
            {"interfaces": [{"name": world.link.interface}], "filter": {"fragments": "drop"}}
        )
    world.start()
    after = stats(world, "r")
    assert (after["packets"], after["bytes"]) == (before["packets"], before["bytes"])
    if how != "kill":
        assert metric(world, "ebpf_fw_packets_total", verdict="drop", reason="rule") >= judged
    drop_pings(world)
    assert stats(world, "r")["packets"] == after["packets"] + PINGS


def test_resets_while_packets_come_lose_none_of_them(world: World) -> None:
    """What was there at the last reset and what came since are all that the interface dropped."""
    add_rule(world, id="r", sources=world.link.peer_address(4))
    command = ["ip", "netns", "exec", world.peer.namespace, "ping", "-q", "-n", "-c", "1500", "-i", "0.001"]
    with subprocess.Popen([*command, "-W", "0.1", world.link.address(4)], stdout=subprocess.DEVNULL) as pings:
        resets = 0
        while pings.poll() is None:
            reset(world, "r")
            resets += 1
    with closing(sqlite3.connect(world.daemon.directory / "state" / "rules.db")) as database:
        ((before,),) = database.execute("SELECT packets FROM resets").fetchall()
    dropped = metric(world, "ebpf_fw_packets_total", verdict="drop", reason="rule")
    assert resets > 3 and dropped > 1000
    assert before + stats(world, "r")["packets"] == dropped


def test_a_policy_rule_is_reset_and_its_metrics_follow(world: World) -> None:
    add_rule(world, id="web", protocols="udp", destination_ports=[5353], labels={"metrics": "true"})
    assert_blocked([udp(world, 5353)], "with the rule")
    assert metric(world, "ebpf_fw_rule_packets_total", rule="web") == 1
    first = stats(world, "web")["last_hit"]
    assert first is not None
    assert reset(world, "web")["last_hit"] is None
    assert metric(world, "ebpf_fw_rule_packets_total", rule="web") == 0
    assert_blocked([udp(world, 5353)], "with the rule")
    assert metric(world, "ebpf_fw_rule_packets_total", rule="web") == 1


def test_rules_that_met_no_packet_are_listed_as_unused(world: World) -> None:
    add_rule(world, id="used", sources=world.link.peer_address(4))
    add_rule(world, id="idle", sources="198.51.100.7")
    add_rule(world, id="idle-web", destination_ports=[81])

    def unused() -> list[str]:
        page = world.api.get("/v1/rules?unused_for=1s").json()
        return [each["id"] for each in page["items"]]

    def only_the_idle() -> bool:
        drop_pings(world)
        return unused() == ["idle", "idle-web"]

    assert unused() == []
    wait_until(only_the_idle, "the idle rules are old enough, and they alone")


def test_what_is_called_shadowed_counts_nothing_and_what_shadows_it_does(world: World) -> None:
    add_rule(world, id="net", sources="10.90.0.0/16", priority=10)
    answer = world.api.post("/v1/rules", json={"id": "host", "sources": world.link.peer_address(4)}).json()
    assert [(each["code"], each["rule"]) for each in answer["warnings"]] == [("shadowed", "net")]
    drop_pings(world)
    assert (stats(world, "net")["packets"], stats(world, "host")["packets"]) == (PINGS, 0)
    (finding,) = world.api.get("/v1/analysis").json()["items"]
    assert (finding["id"], finding["code"], finding["rule"]) == ("host", "shadowed", "net")
