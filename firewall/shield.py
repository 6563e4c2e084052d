"""Who is never locked out: the addresses of `never_drop`, and the connections that panic keeps. Plain values.

Owns what panic keeps as rules of the policy. They have handle 0: no rule of the store has it, and nothing counts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from firewall.address import BITS, Prefix
from firewall.datapath import Connection
from firewall.match import TCP, PortRange
from firewall.policy import Policy, PolicyRule, compile_policy
from firewall.rule import Direction, Rule

NO_RULE = 0  # the handle of entries and bits that are no rule's
PANIC_DEFAULT_S, PANIC_MOST_S = 600, 86_400
Listening = tuple[Prefix, int]  # address and TCP port


@dataclass(frozen=True)
class Shield:
    """What the config says. `panic_options`: OPTION_* by hook while panic is on; `listening`: where the API is."""

    never_drop: tuple[Prefix, ...] = ()
    panic_options: tuple[int, int] = (0, 0)
    listening: tuple[Listening, ...] = ()


@dataclass(frozen=True)
class Panic:
    """Panic as it is stored. Times are seconds since 1970. `kept`: the connections that stay."""

    since: float
    ttl_s: int
    kept: tuple[Connection, ...]

    @property
    def until(self) -> float:
        return self.since + self.ttl_s

    def left_s(self, now: float) -> float:
        """At most its time, also where the clock was set back meanwhile."""
        return 0.0 if now < self.since - self.ttl_s else min(self.ttl_s, self.until - now)

    def encoded(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def decoded(text: str) -> Panic:
        fields = json.loads(text)
        return Panic(fields["since"], fields["ttl_s"], tuple(Connection(*each) for each in fields["kept"]))


def management(connections: Iterable[Connection], listening: Sequence[Listening]) -> tuple[Connection, ...]:
    """SSH sessions of this host, the latest ports first, and both ends of the API's connections."""
    at = {(prefix.version, prefix.address, port) for prefix, port in listening}
    everywhere = {(prefix.version, port) for prefix, port in listening if prefix.address == 0}
    found = [
        each
        for each in connections
        if each.is_ssh
        or (each.version, each.local, each.local_port) in at
        or (each.version, each.local_port) in everywhere
        or (each.version, each.remote, each.remote_port) in at
    ]
    return tuple(sorted(found, key=lambda each: not each.is_ssh))


def panic_policy(
    panic: Panic, listening: Sequence[Listening], interfaces: Mapping[str, int], most: int
) -> Policy:
    """What passes besides never_drop: the API's own address, which is this host's alone, and the kept connections, of
    these at most as many as a policy holds."""
    rules = [rule for each in listening for rule in _reaches(*each)]
    room = max(0, most - len(rules) // 2)
    rules += [rule for each in panic.kept[:room] for rule in _goes_on(each)]
    return compile_policy((PolicyRule(rule, NO_RULE, 0) for rule in rules[: 2 * most]), interfaces)


def _goes_on(each: Connection) -> tuple[Rule, Rule]:
    local, remote = (
        Prefix(each.version, address, BITS[each.version]) for address in (each.local, each.remote)
    )
    here, there = (local, each.local_port), (remote, each.remote_port)
    return _allow("ingress", there, here), _allow("egress", here, there)


def _reaches(address: Prefix, port: int) -> list[Rule]:
    """Both ways on both hooks: on the loopback device the client is here too."""
    api = (address, port)
    hooks: tuple[Direction, Direction] = ("ingress", "egress")
    return [_allow(hook, *ends) for hook in hooks for ends in ((api, None), (None, api))]


def _allow(direction: Direction, source: Listening | None, destination: Listening | None) -> Rule:
    """None: any."""
    return Rule(
        "panic",
        action="allow",
        priority=0,
        direction=direction,
        protocols=(TCP,),
        sources=(source[0],) if source else (),
        source_ports=(PortRange(source[1], source[1]),) if source else (),
        destinations=(destination[0],) if destination else (),
        destination_ports=(PortRange(destination[1], destination[1]),) if destination else (),
    )
