"""What is never dropped, what a default drop spares, and panic: through the loaded programs, on both hooks."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from firewall.datapath import Connection
from tests import oracle
from tests.datapath.loaded import Judged, Loaded

BOTH_HOOKS = pytest.mark.parametrize("hook", ["ingress", "egress"])
DROPS = {"default_ingress": "drop", "default_egress": "drop"}
HERE, FRIEND, STRANGER = "192.0.2.9", "198.51.100.1", "198.51.100.2"
HERE6, FRIEND6 = "2001:db8::9", "2001:db8:1::1"
NEVER = ("pass", "never_drop")


def packet(source: str, destination: str, protocol: int, content: bytes, hops: int = 64) -> bytes:
    from_to = ip_address(source).packed + ip_address(destination).packed
    if ip_address(source).version == 4:
        total = 20 + len(content)
        header = struct.pack("!BBHHHBBH", 0x45, 0, total, 1, 0, hops, protocol, 0) + from_to
        return bytes(12) + b"\x08\x00" + header + content
    header = struct.pack("!IHBB", 6 << 28, len(content), protocol, hops) + from_to
    return bytes(12) + b"\x86\xdd" + header + content


def udp(source: str, destination: str, source_port: int, destination_port: int) -> bytes:
    return packet(source, destination, 17, struct.pack("!HHHH", source_port, destination_port, 8, 0))


def tcp(source: str, source_port: int, destination: str, destination_port: int) -> bytes:
    content = struct.pack("!HHIIBBHHH", source_port, destination_port, 1, 1, 5 << 4, 0x10, 1024, 0, 0)
    return packet(source, destination, 6, content)


def icmp(kind: int, code: int = 0) -> bytes:
    return packet(FRIEND, HERE, 1, bytes((kind, code)) + bytes(6))


def icmp6(kind: int, hops: int = 255) -> bytes:
    return packet(FRIEND6, HERE6, 58, bytes((kind, 0)) + bytes(22), hops)


ARP = bytes(12) + b"\x08\x06" + bytes(28)
LLDP = bytes(12) + b"\x88\xcc" + bytes(28)


def of(address: str, hook: str) -> bytes:
    """A packet that comes from an address, or goes there."""
    return udp(address, HERE, 1, 2) if hook == "ingress" else udp(HERE, address, 1, 2)


@BOTH_HOOKS
def test_never_drop_beats_every_rule_and_default(firewall: Loaded, hook: str) -> None:
    firewall.configure(never_drop=[FRIEND, "2001:db8:1::/48"], **DROPS)
    firewall.rules(
        {"sources": ["198.51.100.0/24"], "direction": "both", "priority": 0},
        {"sources": [FRIEND], "direction": "both", "priority": 0},
        {"direction": "both", "priority": 0, "protocols": ["udp"]},
        {"destinations": [FRIEND], "direction": "both", "priority": 0},
    )
    assert firewall.judge(of(FRIEND, hook), hook) == NEVER
    assert firewall.judge(udp(FRIEND6, HERE6, 1, 2), "ingress") == NEVER
    assert firewall.judge(udp(HERE6, FRIEND6, 1, 2), "egress") == NEVER
    assert firewall.judge(of(STRANGER, hook), hook) == ("drop", "rule")
    assert not any(firewall.hits(f"r{n}")[0] for n in (1, 3))
    # The other side is another's: spoofing a destination at ingress opens nothing.
    assert firewall.judge(of(FRIEND, "egress" if hook == "ingress" else "ingress"), hook) == ("drop", "rule")


@BOTH_HOOKS
def test_malformed_packets_and_dropped_fragments_are_no_matter_of_never_drop(
    firewall: Loaded, hook: str
) -> None:
    firewall.configure(never_drop=["0.0.0.0/0"], fragments="drop")
    frame = bytearray(of(FRIEND, hook))
    assert firewall.judge(bytes(frame[:-4]), hook) == ("drop", "malformed_ipv4")
    frame[20] = 0x20
    assert firewall.judge(bytes(frame), hook) == ("drop", "fragment")


ESSENTIALS: list[tuple[str, bytes, str]] = [
    *(("pass_neighbor_discovery", icmp6(kind), "both") for kind in range(133, 138)),
    ("pass_path_mtu", icmp(3, 4), "both"),
    ("pass_path_mtu", icmp6(2, 64), "both"),
    ("pass_dhcp", udp("192.0.2.254", HERE, 67, 68), "ingress"),
    ("pass_dhcp", udp("0.0.0.0", "255.255.255.255", 68, 67), "egress"),
    ("pass_dhcp", udp("fe80::1", "fe80::2", 547, 546), "ingress"),
    ("pass_dhcp", udp("fe80::2", "ff02::1:2", 546, 547), "egress"),
]
OTHERS = [
    icmp6(132), icmp6(138), icmp6(135, hops=254), icmp6(128), icmp(3, 3), icmp(8), icmp(2),
    packet(FRIEND, HERE, 58, bytes((135,)) + bytes(23), 255), packet(FRIEND6, HERE6, 1, bytes((3, 4)) + bytes(6)),
    tcp(FRIEND, 67, HERE, 68), udp(FRIEND, HERE, 547, 546), udp(FRIEND6, HERE6, 67, 68), udp(FRIEND, HERE, 1, 2),
]  # fmt: skip


@BOTH_HOOKS
def test_a_default_drop_spares_what_a_host_needs(firewall: Loaded, hook: str) -> None:
    firewall.configure(**DROPS)
    for _, frame, where in ESSENTIALS:
        expected = ("pass", "essential") if where in ("both", hook) else ("drop", "default")
        assert firewall.judge(frame, hook) == expected
    for frame in OTHERS:
        assert firewall.judge(frame, hook) == ("drop", "default")
    assert [firewall.judge(frame, hook) for frame in (ARP, LLDP)] == [("pass", "not_ip")] * 2


@BOTH_HOOKS
@pytest.mark.parametrize("off", ["pass_neighbor_discovery", "pass_path_mtu", "pass_dhcp"])
def test_each_of_it_can_be_switched_off(firewall: Loaded, hook: str, off: str) -> None:
    firewall.configure(**{off: False}, **DROPS)
    for kind, frame, where in ESSENTIALS:
        passes = kind != off and where in ("both", hook)
        assert firewall.judge(frame, hook) == (("pass", "essential") if passes else ("drop", "default"))


@BOTH_HOOKS
def test_arp_is_dropped_only_where_it_is_switched_off_and_the_default_is_drop(
    firewall: Loaded, hook: str
) -> None:
    firewall.configure(pass_arp=False, **{f"default_{hook}": "drop"})
    for each in ("ingress", "egress"):
        assert firewall.judge(ARP, each) == (("drop" if each == hook else "pass"), "not_ip")
        assert firewall.judge(LLDP, each) == ("pass", "not_ip")


@BOTH_HOOKS
def test_a_drop_rule_wins_over_what_a_default_drop_spares(firewall: Loaded, hook: str) -> None:
    firewall.configure(**DROPS)
    firewall.rules({"direction": "both", "protocols": ["icmpv6", "icmp", "udp"]})
    assert {firewall.judge(frame, hook) for _, frame, _ in ESSENTIALS} == {("drop", "rule")}


# --- panic


@pytest.fixture
def panicking(firewall: Loaded) -> Iterator[Loaded]:
    """With a session from the friend's port 50000 to port 22 here, a rule that allows all and one of an address."""
    firewall.configure(never_drop="203.0.113.1")
    firewall.rules({"id": "all", "action": "allow", "direction": "both", "priority": 0, "protocols": ["udp"]},
                   {"id": "one", "action": "allow", "sources": [STRANGER], "priority": 0})  # fmt: skip
    here, there = int(ip_address(HERE)), int(ip_address(FRIEND))
    firewall.kernel.connections = lambda: [Connection(4, here, 22, there, 50_000, True)]  # type: ignore[method-assign]
    firewall.enforcer.panic_on(600)
    yield firewall
    firewall.enforcer.panic_off()


def session(hook: str, port: int = 50_000) -> bytes:
    return tcp(FRIEND, port, HERE, 22) if hook == "ingress" else tcp(HERE, 22, FRIEND, port)


def expect(firewall: Loaded, hook: str, passes: dict[str, Any]) -> None:
    frames = {
        "rule": of(STRANGER, hook), "session": session(hook), "other session": session(hook, 50_001),
        "never": of("203.0.113.1", hook), "neighbors": icmp6(135), "arp": ARP,
    }  # fmt: skip
    assert {name: firewall.judge(frame, hook) for name, frame in frames.items()} == passes


IN_PANIC = {
    "rule": Judged("drop", "panic"), "session": Judged("pass", "panic"), "other session": Judged("drop", "panic"),
    "never": Judged(*NEVER), "neighbors": Judged("pass", "essential"), "arp": Judged("pass", "not_ip"),
}  # fmt: skip
AFTER = {
    "rule": Judged("pass", "rule"), "session": Judged("pass", "default"), "other session": Judged("pass", "default"),
    "never": Judged(*NEVER), "neighbors": Judged("pass", "default"), "arp": Judged("pass", "not_ip"),
}  # fmt: skip


@BOTH_HOOKS
def test_panic_drops_all_but_never_drop_and_the_sessions_of_the_moment(panicking: Loaded, hook: str) -> None:
    expect(panicking, hook, IN_PANIC)
    panicking.add(id="late", action="allow", direction="both", priority=0, protocols=["tcp"])
    panicking.add(id="late-address", action="allow", direction="both", priority=0, destinations=[HERE])
    expect(panicking, hook, IN_PANIC)
    panicking.delete("late"), panicking.delete("late-address")
    panicking.enforcer.panic_off()
    expect(panicking, hook, AFTER)


@BOTH_HOOKS
def test_panic_outlives_a_kill_and_the_rules_come_back(panicking: Loaded, hook: str) -> None:
    panicking.restart()
    expect(panicking, hook, IN_PANIC)
    panicking.enforcer.panic_off()
    expect(panicking, hook, AFTER)


def test_the_oracle_knows_never_drop() -> None:
    found = oracle.judge([], of(FRIEND, "ingress"), direction="ingress", interface="x", never_drop=[FRIEND])
    assert (found.verdict, found.reason) == NEVER
