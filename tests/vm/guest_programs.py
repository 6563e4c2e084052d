"""Runs inside the machine: do our programs load, judge and attach on this kernel?

`python -m tests.vm.guest_programs RULES... [CHECK...]`, with what frames.py wrote below /share: one report line a
check. RULES are numbers of policy rules that programs are loaded for.
"""

from __future__ import annotations

import json
import os
import platform
import struct
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from api import wiring
from firewall.enforcer import Enforcer
from firewall.kernel import assembly, bpf, loader, program_set
from firewall.kernel.source import PROGRAMS
from firewall.rule import rule_from_fields
from firewall.settings import Bpf, Settings, State
from firewall.view import RuleQuery
from tests.vm.guest import Check, eventually, run, run_checks
from tests.vm.guest_verifier import COMPILING_S, capacities_of

SHARE = Path("/share")
PIN_ROOT = Path("/sys/fs/bpf/vm")
XDP_DROP, TC_SHOT = 1, 2
# Offsets in struct bpf_prog_info (include/uapi/linux/bpf.h); verified_insns is there since Linux 5.16.
_JITED_LEN, _XLATED_LEN, _LOAD_TIME, _VERIFIED, _INFO_SIZE = 16, 20, 40, 216, 232
FAMILIES = {4: ("10.90.0.1", "10.90.0.2", 24, "icmp"), 6: ("fd90::1", "fd90::2", 64, "icmpv6")}


def load(rules: int) -> dict[str, Any]:
    """What the verifier made of each program, by name."""
    pin_root = PIN_ROOT / f"load-{rules}"
    started = time.monotonic()
    built = program_set.build(pin_root, capacities_of(rules), {}, cache=State().cache_directory)
    seconds = time.monotonic() - started
    try:
        return {"seconds": round(seconds, 1)} | {name: _sizes(built.programs[name]) for name in PROGRAMS}
    finally:
        built.close()
        program_set.discard(pin_root)


def _sizes(fd: int) -> dict[str, int]:
    info = bpf._info(fd, _INFO_SIZE)
    fields = {"xlated": _XLATED_LEN, "jited": _JITED_LEN, "verified_insns": _VERIFIED}
    return {name: struct.unpack_from("=I", info, at)[0] for name, at in fields.items()}


def build_enforcer(directory: str, rules: int = 64) -> Enforcer:
    state = Path("/run/vm") / directory
    state.mkdir(parents=True)
    enforcer = wiring.build(
        Settings(state=State(directory=state), bpf=Bpf(pin_root=PIN_ROOT / directory, max_rules=rules))
    )
    enforcer.start()
    return enforcer


def add(enforcer: Enforcer, **fields: object) -> None:
    enforcer.add(rule_from_fields(fields, str(fields["id"]), time.time()))


def judge() -> dict[str, Any]:
    """Every frame on every program that takes it, all policy and address rules at once."""
    enforcer = build_enforcer("judge")
    try:
        for fields in json.loads((SHARE / "rules.json").read_text()):
            add(enforcer, **fields)
        faults = []
        frames = _frames()
        for program, is_tc in (("fw_xdp_ethernet", False), ("fw_tc_ethernet", True)):
            fd = bpf.get(PIN_ROOT / "judge/programs" / program)
            for name, expected, frame in frames:
                verdict, _, after = bpf.test_run(fd, bytes.fromhex(frame))
                if (verdict == (TC_SHOT if is_tc else XDP_DROP)) != expected:
                    wanted = "dropped" if expected else "passed"
                    faults.append(f"{program}: {name}: verdict {verdict}, should be {wanted}")
                if after != bytes.fromhex(frame):
                    faults.append(f"{program}: {name}: the frame was changed")
            os.close(fd)
        hits = {view.rule.id: view.packets for view in enforcer.rules(RuleQuery(), 0, 100)[0]}
        faults += [f"rule {rule}: no hits" for rule, packets in hits.items() if not packets]
        assert not faults, "\n".join(faults)
        return {"frames": len(frames), "hits": hits}
    finally:
        enforcer.stop()


def _frames() -> list[tuple[str, bool, str]]:
    return [
        (name, dropped, frame) for name, dropped, frame in json.loads((SHARE / "frames.json").read_text())
    ]


def veth(mode: str) -> dict[str, Any]:
    """Real pings over a veth pair, blocked at ingress and at egress and let through again, both families."""
    enforcer = build_enforcer(f"veth-{mode}")
    try:
        _join_namespaces()
        for family in FAMILIES:
            eventually(partial(_answers, family), "ping passes before anything is attached")
        view = enforcer.attach("fw0", mode, True, True)
        assert view.actual_mode == mode, view
        assert all(hook.attached for hook in view.hooks), view
        facts = {f"IPv{family}": _block_and_unblock(enforcer, family) for family in FAMILIES}
        shown = run("ip -d link show dev fw0") + run("tc filter show dev fw0 egress")
        assert "fw_xdp_ethernet" in shown and "fw_tc_ethernet" in shown, shown
        enforcer.detach("fw0")
        shown = run("ip -d link show dev fw0") + run("tc qdisc show dev fw0")
        assert "xdp" not in shown and "clsact" not in shown, shown
        assert _answers(4), "ping passes after detaching"
        return facts
    finally:
        enforcer.stop()
        run("ip link delete fw0", status=None)
        run("ip netns delete peer", status=None)


def _join_namespaces() -> None:
    run("ip netns add peer")
    run("ip link add fw0 type veth peer name peer0 netns peer")
    for family, (ours, theirs, length, _) in FAMILIES.items():
        nodad = "nodad" if family == 6 else ""
        run(f"ip address add {ours}/{length} dev fw0 {nodad}")
        run(f"ip -n peer address add {theirs}/{length} dev peer0 {nodad}")
    run("ip link set fw0 up")
    run("ip -n peer link set peer0 up")


def _answers(family: int) -> bool:
    return "1 received" in run(f"ip netns exec peer ping -c 1 -W 1 {FAMILIES[family][0]}", status=None)


def _block_and_unblock(enforcer: Enforcer, family: int) -> dict[str, int]:
    theirs, protocol = FAMILIES[family][1], FAMILIES[family][3]
    rules: dict[str, dict[str, object]] = {
        "address-in": {"sources": [theirs]},
        "policy-in": {"sources": [theirs], "protocols": [protocol], "interfaces": ["fw*"]},
        "address-out": {"destinations": [theirs], "direction": "egress"},
        "policy-out": {"protocols": [protocol], "direction": "egress"},
    }
    hits = {}
    for name, fields in rules.items():
        assert _answers(family), f"before {name}: no answer"
        add(enforcer, id=name, **fields)
        assert not _answers(family), f"{name}: ping still passes"
        hits[name] = enforcer.rule(name).packets
        assert hits[name], f"{name}: no hits"
        enforcer.delete(name)
        eventually(partial(_answers, family), f"ping passes again after deleting {name}")
    return hits


def grow_addresses() -> dict[str, Any]:
    """More addresses than the front holds: rows of their own, then larger ones, under the same programs."""
    name, frame = next(
        (name, frame) for name, dropped, frame in _frames() if not dropped and "neighbour" in name
    )
    enforcer = build_enforcer("addresses")
    try:
        fd = bpf.get(PIN_ROOT / "addresses/programs/fw_xdp_ethernet")
        before = _address_room()
        assert bpf.test_run(fd, bytes.fromhex(frame))[0] != XDP_DROP, f"{name} is dropped without a rule"
        # The frame is from 203.0.113.8.
        listed = ["203.0.113.8", *(f"10.{n >> 8 & 255}.{n & 255}.1" for n in range(20_000))]
        add(enforcer, id="few", sources=listed[1:3000])
        between = _address_room()
        add(enforcer, id="list", sources=listed)
        after = _address_room()
        assert before < between < after, (before, between, after)
        assert bpf.test_run(fd, bytes.fromhex(frame))[0] == XDP_DROP, f"{name} passes"
        return {"before": before, "after": after}
    finally:
        enforcer.stop()


def _address_room() -> int:
    """Buckets of the rows of IPv4."""
    pins = PIN_ROOT / "addresses/maps"
    return sum(bpf.map_info(bpf.get(pins / f"address_rows{slot}")).max_entries for slot in (0, 1))


def grow_policy() -> dict[str, Any]:
    """More policy vectors than the first maps hold: new programs beside the old, put in their place."""
    enforcer = build_enforcer("grow", rules=4096)
    try:
        run("ip link add fw1 type veth peer name peer1")
        enforcer.attach("fw1", "native", True, True)
        before = {hook.hook: hook.program_id for hook in enforcer.interface("fw1").hooks}
        rules = [
            rule_from_fields(
                {"sources": [f"10.1.{n >> 8}.{n & 255}"], "destination_ports": [str(n + 1)]}, f"r{n}", 0
            )
            for n in range(1100)
        ]
        enforcer.batch(rules, [])
        after = {hook.hook: hook.program_id for hook in enforcer.interface("fw1").hooks}
        assert not enforcer.interface("fw1").native_unavailable
        assert all(after[hook] and after[hook] != before[hook] for hook in before), (before, after)
        return {"rules": enforcer.count()}
    finally:
        enforcer.stop()
        run("ip link delete fw1", status=None)


def describe() -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "jit": Path("/proc/sys/net/core/bpf_jit_enable").read_text().strip(),
    }


def main() -> None:
    assembly.LOG_LINES = 80
    loader.TIMEOUT_S = COMPILING_S
    numbers = [int(each) for each in sys.argv[1:] if each.isdecimal()]
    checks: dict[str, Check] = {
        "describe": describe,
        **{f"load-{rules}": partial(load, rules) for rules in numbers},
        "judge": judge,
        "veth-native": partial(veth, "native"),
        "veth-generic": partial(veth, "generic"),
        "grow-addresses": grow_addresses,
        "grow-policy": grow_policy,
    }
    named = [each for each in sys.argv[1:] if not each.isdecimal()]
    run_checks({name: checks[name] for name in named or checks})


if __name__ == "__main__":
    main()
