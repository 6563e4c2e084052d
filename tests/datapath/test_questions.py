"""Packets judged for a question by the loaded text over the pinned maps: as the oracle says, as the real programs do,
and without a trace."""

from __future__ import annotations

import random

import pytest

from firewall.datapath import Question
from firewall.judging import Place
from firewall.layout import HOOKS
from firewall.view import JudgementView
from tests import oracle
from tests.datapath.frames import tcp, udp
from tests.datapath.loaded import HERE, Loaded
from tests.datapath.test_property import FILTERS, GLOBS, NAMES, World, rank_of
from tests.random_rules import random_frame, random_rules

LINKS = ("ethernet", "ip")


def ask(firewall: Loaded, frame: bytes, hook: str = "ingress", link: str = "ethernet") -> JudgementView:
    place = Place(HOOKS.index(hook), NAMES[0], HERE, link == "ethernet", True, "native")
    return firewall.enforcer.judge_frame(place, frame, len(frame), link == "ethernet")


def listed(world: World, rules: list[dict[str, object]], frame: bytes, hook: str, link: str) -> list[str]:
    """Ids of all rules that match, best first, as the oracle has it."""
    packet = oracle.parse(frame, link)
    matching = [rule for rule in rules if oracle.matches(rule, packet, hook, NAMES[0])]
    return [str(rule["id"]) for rule in sorted(matching, key=oracle.rank)]


@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_property_answers_are_those_of_the_oracle(firewall: Loaded, settings: dict[str, str]) -> None:
    rng = random.Random(str(settings))
    firewall.configure(**settings)
    world = World(settings, NAMES[0])
    reasons = set()
    for _ in range(6):
        rules = random_rules(rng, rng.choice((2, 12, 40)), GLOBS)
        firewall.rules()
        firewall.rules(*rules)
        before = firewall.all_hits(), firewall.counted_since_last()
        for _ in range(40):
            hook, link = rng.choice(HOOKS), rng.choice(LINKS)
            frame = random_frame(rng, link)[: rng.choice((1 << 16, 1 << 16, rng.randrange(1, 60)))]
            expected = oracle.judge(
                rules,
                frame,
                direction=hook,
                interface=NAMES[0],
                link=link,
                default_action=settings.get(f"default_{hook}", "allow"),
                fragments=settings.get("fragments", "match"),
                malformed=settings.get("malformed", "drop"),
            )
            found = ask(firewall, frame, hook, link)
            where = (settings, rules, hook, link, frame.hex())
            assert (found.verdict, found.reason) == (expected.verdict, expected.reason), where
            assert found.consistent, where
            winner = found.rule.id if found.rule else None
            assert rank_of(rules, winner) == rank_of(rules, expected.rule_id), where
            if expected.reason in ("rule", "default"):
                matched = [each.id for each in found.also_matched] + ([winner] if winner else [])
                assert sorted(matched) == sorted(listed(world, rules, frame, hook, link)), where
                ranks = [rank_of(rules, each.id) for each in found.also_matched]
                assert ranks == sorted(ranks), where  # type: ignore[type-var]
            reasons.add(found.reason)
        assert (firewall.all_hits(), firewall.counted_since_last()) == (before[0], {})
    assert {"rule", "default"} <= reasons and len(reasons) > 4


def test_the_answer_is_what_the_real_programs_do(firewall: Loaded) -> None:
    firewall.rules(
        {"sources": "192.0.2.200", "priority": 7},
        {"protocols": "tcp", "destination_ports": 22, "action": "allow", "priority": 3},
        {"protocols": "udp", "direction": "egress"},
    )
    for hook in HOOKS:
        for frame in (tcp(dport=22), tcp(dport=23), udp()):
            found = ask(firewall, frame, hook)
            assert firewall.judge(frame, hook) == (found.verdict, found.reason)


def test_frames_of_any_length_can_be_asked_about(firewall: Loaded) -> None:
    for length in (1, 13, 14, 20, 33, 34):
        assert ask(firewall, tcp()[:length]).reason.startswith("malformed"), length
    assert ask(firewall, tcp() + bytes(9000)).reason == "default"
    assert ask(firewall, tcp()[14:], link="ip").reason == "default"


def test_what_a_capture_left_out_counts_as_there(firewall: Loaded) -> None:
    firewall.rules({"protocols": "tcp", "destination_ports": 22})
    whole = bytearray(tcp(dport=22) + bytes(1400))
    whole[16:18] = (len(whole) - 14).to_bytes(2, "big")
    place = Place(0, NAMES[0], HERE, True, True, "native")
    assert firewall.enforcer.judge_frame(place, bytes(whole[:60]), len(whole), True).verdict == "drop"
    assert firewall.enforcer.judge_frame(place, bytes(whole[:60]), 60, True).reason == "malformed_ipv4"


def test_questions_are_answered_after_growth_and_restart(firewall: Loaded) -> None:
    firewall.rules({"protocols": "tcp"})
    assert ask(firewall, tcp()).verdict == "drop"
    firewall.rules(
        *(
            {"sources": f"10.{n >> 8}.{n & 255}.0/24", "protocols": "udp", "source_ports": n}
            for n in range(2000)
        )
    )
    assert ask(firewall, udp(source="10.0.77.1", sport=77)).rule is not None
    firewall.restart()
    assert ask(firewall, udp(source="10.0.77.1", sport=77)).rule is not None
    assert firewall.kernel.missing_pins() == []


def test_an_entry_that_others_deleted_is_told_as_a_difference(fresh: Loaded) -> None:
    fresh.rules({"id": "gone", "sources": "192.0.2.200"})
    assert ask(fresh, tcp()).consistent
    maps = fresh.kernel._set.maps
    (key,) = maps["address4"].keys()
    maps["address4"].delete(key)
    found = ask(fresh, tcp())
    assert (found.verdict, found.rule, found.consistent) == ("pass", None, False)
    assert [each.id for each in found.also_matched] == ["gone"]


def test_programs_that_are_not_those_on_disk_are_not_asked(fresh: Loaded) -> None:
    fresh.kernel._set.maps.control["program"] = 1
    with pytest.raises(Exception, match="restart the service"):
        fresh.kernel.judge(Question(0, HERE, True, tcp(), 54))


def test_a_packet_that_comes_in_the_middle_does_not_disturb_an_answer(firewall: Loaded) -> None:
    """The rows of memory are not those of real packets: what is left there by the one is not seen by the other."""
    firewall.rules({"sources": "192.0.2.200"})
    for _ in range(50):
        assert firewall.judge(udp(source="192.0.2.9")).verdict == "pass"
        assert ask(firewall, tcp()).verdict == "drop"
    assert firewall.kernel._set.maps["scratch"].info.max_entries == 2 * len(HOOKS)
