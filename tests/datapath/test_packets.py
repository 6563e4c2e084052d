"""Every case of tests/packets.py through the loaded programs, on both hooks: what the parser must find.

A field is found when a rule that asks for exactly what the case expects matches, and none that asks for
anything beside it does. No oracle here: the expectations are those written in the table.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from firewall.errors import KernelRefused
from tests import oracle
from tests.datapath.loaded import IP_HEADER, SHORTEST_FRAME, Judged, Loaded, runnable
from tests.packets import CASES, DESTINATION4, DESTINATION6, SOURCE4, SOURCE6, Case, Expect

HOOKS = ("ingress", "egress")
ADDRESSES = {4: (SOURCE4, DESTINATION4), 6: (SOURCE6, DESTINATION6)}
PORT_PROTOCOLS = [6, 17, 33, 132, 136]
FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
UNREADABLE = ("malformed_link", "malformed_ipv4", "malformed_ipv6")
# No test run takes them: the least is an Ethernet header, also for devices that have none.
TOO_SHORT = [case for case in CASES if len(case.frame) < SHORTEST_FRAME]
RUNNABLE = [case for case in CASES if len(case.frame) >= SHORTEST_FRAME]
both_hooks = pytest.mark.parametrize("hook", HOOKS)


def is_malformed(expect: Expect) -> bool:
    return expect.reason.startswith("malformed")


def wrong(
    firewall: Loaded, hook: str, cases: Iterable[Case], expected: Callable[[Case], tuple[str, str]]
) -> list[str]:
    """What was judged otherwise, a line a case."""
    lines = []
    for case in cases:
        judged = firewall.judge(runnable(case.frame, hook), hook, case.link)
        if judged != expected(case):
            lines.append(f"{case.name}: {judged}, expected {expected(case)}")
    return lines


def without_rules(expect: Expect) -> Judged:
    return Judged("drop" if is_malformed(expect) else "pass", expect.reason)


# --- what cannot run ---------------------------------------------------------------------------------------


def refusals(firewall: Loaded, hook: str) -> set[str]:
    refused = set()
    for case in CASES:
        try:
            firewall.judge(case.frame, hook, case.link)
        except KernelRefused as refusal:
            if refusal.errno != errno.EINVAL:
                raise
            refused.add(case.name)
    return refused


def test_only_bare_frames_of_less_than_14_bytes_cannot_run() -> None:
    names = {"Without Ethernet: no byte"}
    for packet in ("IPv4 UDP", "IPv6 TCP"):
        names |= {f"Without Ethernet: {packet}, cut to {size} bytes" for size in range(SHORTEST_FRAME)}
    assert {case.name for case in TOO_SHORT} == names
    assert all(case.link == "ip" for case in TOO_SHORT)


def test_the_kernel_runs_every_other_frame_at_ingress(firewall: Loaded) -> None:
    assert refusals(firewall, "ingress") == {case.name for case in TOO_SHORT}


def test_the_kernel_runs_every_other_frame_at_egress_some_only_behind_a_tag(firewall: Loaded) -> None:
    """Those are frames of IPv4's or IPv6's type that end inside the header. Kernels before 6.18 run them too."""
    too_short = {case.name for case in TOO_SHORT}
    tagged = {case.name for case in RUNNABLE if runnable(case.frame, "egress") != case.frame}
    assert refusals(firewall, "egress") in (too_short | tagged, too_short)
    assert all(len(case.frame) - 14 < max(IP_HEADER.values()) for case in RUNNABLE if case.name in tagged)


# --- without rules -----------------------------------------------------------------------------------------


@both_hooks
@pytest.mark.parametrize("case", RUNNABLE, ids=lambda case: case.name.replace("::", ": :"))
def test_without_rules(shared: Loaded, case: Case, hook: str) -> None:
    if shared.enforcer.count():
        shared.rules()
    shared.configure()
    assert shared.judge(runnable(case.frame, hook), hook, case.link) == without_rules(case.expect)


@both_hooks
def test_malformed_pass_passes_the_malformed_with_their_reason(firewall: Loaded, hook: str) -> None:
    firewall.configure(malformed="pass")
    assert wrong(firewall, hook, RUNNABLE, lambda case: ("pass", case.expect.reason)) == []


@both_hooks
def test_malformed_pass_does_not_fall_back_on_default_drop(firewall: Loaded, hook: str) -> None:
    firewall.configure(malformed="pass", default_ingress="drop", default_egress="drop")

    def expected(case: Case) -> tuple[str, str]:
        if is_essential(case, hook):
            return "pass", "essential"
        return ("drop" if case.expect.reason == "default" else "pass", case.expect.reason)

    assert wrong(firewall, hook, RUNNABLE, expected) == []


def is_essential(case: Case, hook: str) -> bool:
    packet = oracle.parse(case.frame, case.link)
    kinds = oracle.is_neighbor_discovery(packet), oracle.is_dhcp(packet, hook), oracle.is_path_mtu(packet)
    return packet.reason == "default" and any(kinds)


@both_hooks
def test_default_drop_drops_all_ip_that_is_not_essential_and_nothing_else(
    firewall: Loaded, hook: str
) -> None:
    firewall.configure(**{f"default_{hook}": "drop"})

    def expected(case: Case) -> tuple[str, str]:
        if is_essential(case, hook):
            return "pass", "essential"
        return ("pass" if case.expect.reason == "not_ip" else "drop", case.expect.reason)

    assert wrong(firewall, hook, RUNNABLE, expected) == []


@both_hooks
@pytest.mark.parametrize("rules", [[], [{"priority": 0, "action": "allow", "direction": "both"}]])
def test_fragments_drop_drops_every_fragment_before_any_rule(
    firewall: Loaded, hook: str, rules: list[dict[str, Any]]
) -> None:
    firewall.configure(fragments="drop")
    firewall.rules(*rules)

    def expected(case: Case) -> tuple[str, str]:
        if case.expect.reason != "default":
            return without_rules(case.expect)
        if case.expect.fragment:
            return ("drop", "fragment")
        return ("pass", "rule" if rules else "default")

    assert wrong(firewall, hook, RUNNABLE, expected) == []


@both_hooks
def test_fragments_drop_drops_malformed_fragments_that_would_pass(firewall: Loaded, hook: str) -> None:
    firewall.configure(fragments="drop", malformed="pass")

    def expected(case: Case) -> tuple[str, str]:
        return ("drop", "fragment") if case.expect.fragment else ("pass", case.expect.reason)

    assert wrong(firewall, hook, RUNNABLE, expected) == []


# --- rules that ask for what is there ----------------------------------------------------------------------


def asks_exactly(expect: Expect) -> dict[str, Any]:
    """Every field of the packet, as a rule."""
    assert expect.version is not None
    source, destination = ADDRESSES[expect.version]
    rule: dict[str, Any] = {
        "direction": "both",
        "family": f"ipv{expect.version}",
        "sources": [source],
        "destinations": [destination],
        "protocols": [expect.protocol],
    }
    if expect.ports:
        rule |= {"source_ports": [expect.ports[0]], "destination_ports": [expect.ports[1]]}
    if expect.icmp:
        rule["icmp_types"] = ["{}/{}".format(*expect.icmp)]
    if expect.tcp_flags is not None:
        rule["tcp_flags"] = {"set": list(expect.tcp_flags), "unset": list(set(FLAGS) - expect.tcp_flags)}
    return rule


def near_misses(expect: Expect) -> Iterator[dict[str, Any]]:
    """Rules that differ from the packet in one field."""
    version, protocol = expect.version, expect.protocol
    assert version is not None and protocol is not None
    source, destination = ADDRESSES[version]
    other = ADDRESSES[10 - version]
    bits = {4: 32, 6: 128}[version]
    yield {"sources": [destination]}
    yield {"destinations": [source]}
    yield {"sources": [str(ip_address(source) + 1)]}
    yield {"sources": [f"{ip_address(source) - 1}/{bits}"], "protocols": [protocol]}
    yield {"destinations": [str(ip_address(destination) + 1), str(ip_address(destination) - 1)]}
    yield {"sources": [source], "destinations": [source]}
    yield {"sources": [f"{other[0]}/0".replace(other[0], "::" if version == 4 else "0.0.0.0")]}
    yield {"family": f"ipv{10 - version}", "protocols": [protocol]}
    yield {"family": f"ipv{10 - version}", "sources": [source]}
    yield {"protocols": [each for each in range(256) if each != protocol]}
    yield from other_ports(expect.ports)
    yield from other_types(expect.icmp)
    yield from other_flags(expect.tcp_flags)


def other_ports(ports: tuple[int, int] | None) -> Iterator[dict[str, Any]]:
    if ports is None:
        yield {"protocols": PORT_PROTOCOLS, "destination_ports": ["0-65535"]}
        yield {"protocols": PORT_PROTOCOLS, "source_ports": ["0-65535"]}
        return
    source, destination = ports
    for field, port in (("source_ports", source), ("destination_ports", destination)):
        yield {"protocols": PORT_PROTOCOLS, field: [f"0-{port - 1}", f"{port + 1}-65535"]}
    yield {"protocols": PORT_PROTOCOLS, "source_ports": [destination], "destination_ports": [source]}
    yield {"protocols": PORT_PROTOCOLS, "source_ports": [source], "destination_ports": [source]}


def other_types(icmp: tuple[int, int] | None) -> Iterator[dict[str, Any]]:
    if icmp is None:
        yield {"icmp_types": list(range(256))}
        return
    kind, code = icmp
    yield {"icmp_types": [each for each in range(256) if each != kind]}
    yield {"icmp_types": [f"{kind}/{each}" for each in range(256) if each != code]}


def other_flags(flags: frozenset[str] | None) -> Iterator[dict[str, Any]]:
    if flags is None:
        yield {"tcp_flags": {"set": ["syn"]}}
        yield {"tcp_flags": {"unset": ["syn"]}}
        return
    for flag in FLAGS:
        yield {"tcp_flags": {"unset" if flag in flags else "set": [flag]}}


def cases_by_expectation(wanted: Callable[[Expect], bool]) -> dict[Expect, list[Case]]:
    """Cases that one rule set serves."""
    by_expect: dict[Expect, list[Case]] = {}
    for case in RUNNABLE:
        if case.expect.version is not None and wanted(case.expect):
            by_expect.setdefault(case.expect, []).append(case)
    return by_expect


READABLE = cases_by_expectation(lambda expect: expect.reason == "default")
HALF_READABLE = cases_by_expectation(is_malformed)


def sentence(expect: Expect) -> str:
    parts = [f"v{expect.version} {expect.protocol} {expect.reason}"]
    parts += [str(part) for part in (expect.ports, expect.icmp) if part]
    parts += ["+".join(sorted(expect.tcp_flags)) or "no flags"] if expect.tcp_flags is not None else []
    return " ".join([*parts, "fragment" if expect.fragment else ""]).strip()


@pytest.mark.parametrize("expect", READABLE, ids=sentence)
def test_a_rule_that_asks_for_just_the_packet_drops_and_counts_it(firewall: Loaded, expect: Expect) -> None:
    firewall.rules(asks_exactly(expect))
    packets = size = 0
    for hook in HOOKS:
        assert wrong(firewall, hook, READABLE[expect], lambda _: ("drop", "rule")) == []
        packets += len(READABLE[expect])
        size += sum(len(case.frame) for case in READABLE[expect])
        assert firewall.hits("r0") == (packets, size)


@pytest.mark.parametrize("expect", READABLE, ids=sentence)
def test_a_rule_that_asks_for_anything_else_does_not_match(firewall: Loaded, expect: Expect) -> None:
    firewall.rules(*({"direction": "both", **rule} for rule in near_misses(expect)))
    for hook in HOOKS:
        assert wrong(firewall, hook, READABLE[expect], lambda _: ("pass", "default")) == []
    assert firewall.all_hits() == {}


@pytest.mark.parametrize("expect", HALF_READABLE, ids=sentence)
def test_malformed_pass_judges_by_addresses_and_protocol(firewall: Loaded, expect: Expect) -> None:
    """A malformed packet whose addresses are known meets the rules as one without L4 fields."""
    firewall.configure(malformed="pass")
    firewall.rules(*({"direction": "both", **rule} for rule in near_misses(expect)))
    for hook in HOOKS:
        assert wrong(firewall, hook, HALF_READABLE[expect], lambda _: ("pass", expect.reason)) == []
    firewall.rules(asks_exactly(expect))
    for hook in HOOKS:
        assert wrong(firewall, hook, HALF_READABLE[expect], lambda _: ("drop", "rule")) == []
    assert firewall.hits("r0")[0] == 2 * len(HALF_READABLE[expect])


@both_hooks
def test_malformed_drop_drops_what_a_rule_allows(firewall: Loaded, hook: str) -> None:
    firewall.rules({"direction": "both", "action": "allow", "priority": 0})
    malformed = [case for case in RUNNABLE if is_malformed(case.expect)]
    assert wrong(firewall, hook, malformed, lambda case: ("drop", case.expect.reason)) == []
    assert firewall.all_hits() == {}


ONE_FIELD: dict[str, tuple[dict[str, Any], Callable[[Expect], bool]]] = {
    "a source address": ({"sources": [SOURCE4, SOURCE6]}, lambda expect: True),
    "a destination network": ({"destinations": ["198.51.100.0/24", "2001:db8:2::/48"]}, lambda expect: True),
    "every packet": ({}, lambda expect: True),
    "family IPv4": ({"family": "ipv4"}, lambda expect: expect.version == 4),
    "family IPv6": ({"family": "ipv6"}, lambda expect: expect.version == 6),
    "protocol TCP": ({"protocols": ["tcp"]}, lambda expect: expect.protocol == 6),
    "port 53": ({"destination_ports": [53]}, lambda expect: (expect.ports or (0, 0))[1] == 53),
    "a TCP flag": ({"tcp_flags": {"set": ["syn"]}}, lambda expect: "syn" in (expect.tcp_flags or ())),
    "an ICMP type": ({"icmp_types": [8, 128]}, lambda expect: expect.icmp in ((8, 0), (128, 0))),
}


@both_hooks
@pytest.mark.parametrize("name", ONE_FIELD)
def test_a_rule_that_asks_for_one_field_matches_just_the_packets_with_it(
    firewall: Loaded, name: str, hook: str
) -> None:
    fields, matches = ONE_FIELD[name]
    firewall.rules({"direction": hook, **fields})

    def expected(case: Case) -> tuple[str, str]:
        if case.expect.reason == "default" and matches(case.expect):
            # (128, 2) and the like are of another code of the type, which the rule asks for as well.
            return ("drop", "rule")
        return without_rules(case.expect)

    cases = [case for case in RUNNABLE if not (name == "an ICMP type" and (case.expect.icmp or (0, 0))[1])]
    assert wrong(firewall, hook, cases, expected) == []
