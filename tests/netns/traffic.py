"""Kinds of traffic that a wire test sends, and the shape of its claim: what is named is blocked, no more.

Owns the frames and the before, during and after of a rule. It must not hold a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.netns.world import ARRIVES_WITHIN_S, BLOCKED_AFTER_S, World

PINGS = 3
NEEDLE = b"a payload to find again"


@dataclass(frozen=True)
class Traffic:
    """`send` gets how long to wait for an answer, in seconds, and says whether it passed.

    `packets`: how many of them meet the hook when they are dropped.
    """

    what: str
    send: Callable[[float], bool]
    packets: int = 1

    def passes(self) -> bool:
        """Waits long: a busy machine is no firewall."""
        return self.send(ARRIVES_WITHIN_S)

    def is_blocked(self) -> bool:
        """Waits no longer than it takes a TCP client to send its second SYN."""
        return not self.send(BLOCKED_AFTER_S)


def ping(world: World, family: int = 4, *, outward: bool = False, **options: Any) -> Traffic:
    def send(timeout_s: float) -> bool:
        answered = world.ping(family, PINGS, outward=outward, timeout_s=timeout_s, **options)
        assert answered in (0, PINGS), f"{answered} of {PINGS} pings were answered"
        return answered == PINGS

    return Traffic(f"ping -{family} {options or ''} {_way(outward)}", send, PINGS)


def tcp(world: World, port: int, family: int = 4, **options: Any) -> Traffic:
    """A whole connection; one SYN where it is blocked."""
    return Traffic(
        f"tcp{family} {port} {options}",
        lambda timeout_s: world.tcp_connect(port, family, timeout_s=timeout_s, **options),
    )


def udp(world: World, port: int, family: int = 4, **options: Any) -> Traffic:
    return Traffic(
        f"udp{family} {port} {options}",
        lambda timeout_s: world.udp_echo(port, family, timeout_s=timeout_s, **options),
    )


def frame(world: World, crafted: Packet, *, link: int = 0, outward: bool = False) -> Traffic:
    """One frame with NEEDLE in it."""
    content = bytes(crafted)
    return Traffic(
        f"{crafted.summary()} {_way(outward)}",
        lambda _: world.arrives(content, NEEDLE, link=link, outward=outward),
    )


def _way(outward: bool) -> str:
    return "outward" if outward else "inward"


def ethernet(world: World, *, outward: bool = False) -> Ether:
    link = world.link
    return Ether(src=link.mac, dst=link.peer_mac) if outward else Ether(src=link.peer_mac, dst=link.mac)


def ip(world: World, family: int = 4, *, outward: bool = False, **fields: Any) -> Packet:
    """An IP header between the two ends, whose fields can be overridden."""
    own, other = world.link.address(family), world.link.peer_address(family)
    ends = {"src": own, "dst": other} if outward else {"src": other, "dst": own}
    return (IP if family == 4 else IPv6)(**{**ends, **fields})


def udp_to(port: int, source_port: int = 1024) -> Packet:
    return UDP(sport=source_port, dport=port) / Raw(NEEDLE)


def tcp_to(port: int, flags: str = "S") -> Packet:
    return TCP(sport=1024, dport=port, flags=flags) / Raw(NEEDLE)


def icmp(kind: int, code: int = 0) -> Packet:
    return ICMP(type=kind, code=code) / Raw(NEEDLE)


def add_rule(world: World, **rule: Any) -> str:
    """Returns the rule's id."""
    answer = world.api.post("/v1/rules", json=rule)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def delete_rule(world: World, rule_id: str) -> None:
    answer = world.api.delete(f"/v1/rules/{rule_id}")
    assert answer.status_code == 204, answer.text


def packets_of(world: World, rule_id: str) -> int:
    answer = world.api.get(f"/v1/rules/{rule_id}")
    assert answer.status_code == 200, answer.text
    return int(answer.json()["stats"]["packets"])


def assert_passes(traffic: Sequence[Traffic], when: str) -> None:
    for each in traffic:
        assert each.passes(), f"{each.what} did not pass {when}"


def assert_blocked(traffic: Sequence[Traffic], when: str) -> None:
    for each in traffic:
        assert each.is_blocked(), f"{each.what} passed {when}"


def assert_blocks(
    world: World, rule: dict[str, Any], named: Sequence[Traffic], neighbours: Sequence[Traffic]
) -> None:
    """Both pass; with the rule, what it names is dropped and counted one by one, and its neighbours, which
    differ in one thing, pass; without the rule, both pass again."""
    assert_passes([*named, *neighbours], "before the rule")
    rule_id = add_rule(world, **rule)
    assert_blocked(named, f"with {rule}")
    assert packets_of(world, rule_id) == sum(each.packets for each in named)
    assert_passes(neighbours, f"with {rule}")
    assert packets_of(world, rule_id) == sum(each.packets for each in named), "a neighbour was counted"
    delete_rule(world, rule_id)
    assert_passes([*named, *neighbours], "after the rule")
