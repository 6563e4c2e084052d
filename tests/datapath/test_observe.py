"""Rules that observe: they count what they would decide, decide nothing, and cost their room as others do."""

from __future__ import annotations

from typing import Any

import pytest

from firewall.errors import TableFull
from tests.datapath.contents import assert_exact
from tests.datapath.frames import tcp, udp
from tests.datapath.loaded import Judged, Loaded

PASSES, DROPPED, ALLOWED = Judged("pass", "default"), Judged("drop", "rule"), Judged("pass", "rule")
HOOKS = pytest.mark.parametrize("hook", ["ingress", "egress"])
SOURCE = "192.0.2.200"
# As address rules they would live in the address tables.
KINDS = pytest.mark.parametrize(
    "asked",
    [{"sources": SOURCE}, {"protocols": "tcp"}, {"destinations": "198.51.100.0/24", "protocols": "tcp"}],
    ids=str,
)


@HOOKS
@KINDS
def test_what_it_would_drop_passes_and_is_counted(firewall: Loaded, hook: str, asked: dict[str, Any]) -> None:
    firewall.rules({"id": "try", "direction": hook, "mode": "observe", **asked})
    frame = tcp()
    assert firewall.judge(frame, hook) == PASSES
    assert firewall.hits("try") == (1, len(frame))
    assert firewall.judge(udp("192.0.2.9"), hook) == PASSES
    assert firewall.hits("try") == (1, len(frame))


@HOOKS
def test_the_next_rule_decides(firewall: Loaded, hook: str) -> None:
    firewall.rules(
        {"id": "try", "mode": "observe", "sources": SOURCE, "priority": 1},
        {"id": "allow", "action": "allow", "protocols": "tcp", "priority": 2},
        {"id": "drop", "sources": SOURCE, "priority": 3},
    )
    for rule in ("try", "allow", "drop"):
        firewall.edit(rule, direction="both")
    assert firewall.judge(tcp(), hook) == ALLOWED
    assert firewall.judge(udp(SOURCE), hook) == DROPPED
    assert [firewall.hits(rule)[0] for rule in ("try", "allow", "drop")] == [2, 1, 1]


def test_a_rule_that_another_beats_is_not_counted(firewall: Loaded) -> None:
    firewall.rules(
        {"id": "better", "sources": SOURCE, "priority": 1},
        {"id": "try", "mode": "observe", "protocols": "tcp", "priority": 2},
        {"id": "same", "mode": "observe", "protocols": "tcp", "priority": 1},
    )
    assert firewall.judge(tcp()) == DROPPED
    assert [firewall.hits(rule)[0] for rule in ("better", "try", "same")] == [1, 0, 0]


def test_every_one_that_would_have_won_is_counted(firewall: Loaded) -> None:
    rules = [{"id": f"o{n}", "mode": "observe", "protocols": "tcp", "priority": n} for n in range(60)]
    firewall.rules(*rules, {"id": "real", "protocols": "tcp", "priority": 30})
    assert firewall.judge(tcp()) == DROPPED
    assert [firewall.hits(f"o{n}")[0] for n in range(60)] == [1] * 30 + [0] * 30


def test_one_that_would_allow_is_counted_where_the_default_drops(firewall: Loaded) -> None:
    firewall.configure(default_ingress="drop")
    firewall.rules({"id": "try", "mode": "observe", "action": "allow", "protocols": "tcp"})
    assert firewall.judge(tcp()) == Judged("drop", "default")
    assert firewall.hits("try")[0] == 1


def test_packets_that_rules_are_not_asked_about_are_not_counted(firewall: Loaded) -> None:
    firewall.rules({"id": "all", "mode": "observe", "priority": 0})
    assert firewall.judge(bytes(12) + b"\x08\x06" + bytes(28)).reason == "not_ip"
    assert firewall.judge(tcp()[:40]).verdict == "drop"
    assert firewall.hits("all") == (0, 0)


def test_promoting_keeps_the_count_whatever_structure_holds_the_rule(firewall: Loaded) -> None:
    for asked in ({"sources": SOURCE}, {"protocols": "tcp"}):
        firewall.rules()
        firewall.rules({"id": "try", "mode": "observe", **asked})
        assert firewall.judge(tcp()) == PASSES
        firewall.enforcer.promote("try")
        assert firewall.judge(tcp()) == DROPPED
        assert firewall.hits("try")[0] == 2
        firewall.edit("try", mode="observe")
        assert firewall.judge(tcp()) == PASSES
        assert firewall.hits("try")[0] == 3


def test_it_survives_growth_restart_and_other_settings(firewall: Loaded) -> None:
    firewall.rules({"id": "try", "mode": "observe", "sources": SOURCE})
    assert firewall.judge(tcp()) == PASSES
    many = [
        {"id": f"m{n}", "sources": f"10.{n >> 8}.{n & 255}.0/24", "protocols": "udp"} for n in range(1500)
    ]
    firewall.batch(many, [])
    assert firewall.judge(tcp()) == PASSES
    firewall.restart()
    assert firewall.judge(tcp()) == PASSES
    firewall.configure(fragments="drop")
    assert firewall.judge(tcp()) == PASSES
    assert firewall.hits("try")[0] == 4
    assert firewall.kernel.missing_pins() == []
    assert_exact(firewall)


def test_its_program_is_called_again_where_the_pins_were_lost(fresh: Loaded) -> None:
    """Without a pin or a service the kernel empties what leads there; the next start fills it."""
    fresh.rules({"id": "try", "mode": "observe", "sources": SOURCE})
    for name in ("observe_xdp", "observe_tc"):
        (fresh._directory / "bpf" / "root" / "maps" / name).unlink()
    assert len(fresh.kernel.missing_pins()) == 2
    fresh.restart()
    assert fresh.judge(tcp()) == PASSES
    assert fresh.hits("try")[0] == 1


def test_rules_that_observe_count_towards_the_limit(fresh: Loaded) -> None:
    fresh.restart(bpf={"max_rules": 64})
    observers = [{"id": f"o{n}", "mode": "observe", "sources": f"10.0.0.{n}"} for n in range(32)]
    others = [{"id": f"e{n}", "protocols": "udp", "source_ports": n + 1} for n in range(32)]
    fresh.rules(*observers, *others)
    assert_exact(fresh)
    with pytest.raises(TableFull):
        fresh.add(id="more", mode="observe", sources="10.0.1.1")
    fresh.add(id="address", sources="10.0.1.1")
    assert fresh.judge(tcp("10.0.0.3")) == PASSES
    assert fresh.hits("o3")[0] == 1


def test_where_both_kinds_fill_their_words_the_last_rules_have_no_room(firewall: Loaded) -> None:
    """4,096 rules have 64 words and not one more: that would cost every packet."""
    rules = [{"id": f"e{n}", "protocols": "udp", "source_ports": n + 1} for n in range(4095)]
    firewall.rules(*rules)
    with pytest.raises(TableFull, match="4160"):
        firewall.add(id="try", mode="observe", protocols="tcp")
    firewall.batch([], [f"e{n}" for n in range(63)])
    firewall.add(id="try", mode="observe", protocols="tcp")
    assert firewall.judge(tcp()) == PASSES
    assert firewall.hits("try")[0] == 1
