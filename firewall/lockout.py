"""Whom a change would lock out: the connections by which this host is managed, judged by the rules before and after.

Owns what such a connection is (SSH sessions of this host, the API client that asks, the API's own listener), its
packets in both directions, and the comparison. It reads the host through the Kernel protocol and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from firewall.address import format_address
from firewall.datapath import Connection, Kernel
from firewall.errors import FirewallError
from firewall.interfaces import EGRESS, INGRESS, Interfaces
from firewall.layout import C
from firewall.match import TCP, PortRange
from firewall.matching import Rules, matches, winner
from firewall.packet import Packet
from firewall.rule import Rule
from firewall.store import Record

_ACK, _SYN = 0x10, 0x02
_KEPT_S = 1.0  # a list of live connections is good for so long
_EPHEMERAL = 49152  # RFC 6335: where the port of a client may come from
_FEW = 64  # rules that are looked at one by one
_LOOPBACK = "lo"


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP address that the API listens on."""

    version: int
    address: int
    port: int


@dataclass(frozen=True, slots=True)
class Managing:
    """A packet of a management connection: of which one, in words, and of what purpose."""

    packet: Packet
    connection: str
    purpose: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A packet that passed before and does not pass after; the handle of the rule, None for the default action."""

    managing: Managing
    handle: int | None


class ManagementTraffic:
    """What may not be cut off, as packets at the hooks that we protect. `clock`: seconds that only go forward. Used
    under the enforcer's lock."""

    def __init__(self, kernel: Kernel, interfaces: Interfaces, clock: Callable[[], float]) -> None:
        self._kernel = kernel
        self._interfaces = interfaces
        self._clock = clock
        self._until = float("-inf")
        self._sessions: list[Connection] = []
        self._carriers: dict[tuple[int, int], int | None] = {}
        self.listeners: tuple[Listener, ...] = ()

    def packets(
        self, client: Connection | None, also: tuple[str, int, bool, bool] | None = None
    ) -> list[Managing]:
        """`client`: of the API. `also`: name, index and hooks of an interface that is about to be protected, judged
        instead of the others."""
        hooks = {also[1]: (also[0], also[2], also[3])} if also else self._protected()
        if not hooks:
            return []
        self._refresh()
        found = []
        connections = [(each, "ssh") for each in self._sessions]
        if client is not None:
            connections.append((client, "api_client"))
        for connection, purpose in connections:
            place = hooks.get(self._carrier(connection) or 0)
            if place is not None:
                found += _both_ways(connection, purpose, *place)
                if place[0] == _LOOPBACK:  # each packet meets both hooks
                    text = _in_words(connection, purpose)
                    found += [
                        replace(each, connection=text)
                        for each in _both_ways(_swapped(connection), purpose, *place)
                    ]
        if loopback := next((each for each in hooks.values() if each[0] == _LOOPBACK), None):
            for listener in self.listeners:
                found += _first_packets(listener, *loopback)
        return found

    def _protected(self) -> dict[int, tuple[str, bool, bool]]:
        return {
            held.link.ifindex: (held.link.name, held.request.ingress, held.request.egress)
            for held in self._interfaces.all_held()
        }

    def _refresh(self) -> None:
        if self._clock() < self._until:
            return
        try:
            self._sessions = self._kernel.ssh_sessions()
        except FirewallError:  # a kernel without sock_diag: nothing is known, nothing is refused
            self._sessions = []
        self._carriers = {}
        self._until = self._clock() + _KEPT_S

    def _carrier(self, connection: Connection) -> int | None:
        remote = connection.version, connection.remote
        if remote not in self._carriers:
            self._carriers[remote] = self._kernel.route_to(*remote)
        return self._carriers[remote]


def _both_ways(
    connection: Connection, purpose: str, interface: str, ingress: bool, egress: bool
) -> list[Managing]:
    text = _in_words(connection, purpose)
    comes = Packet(
        INGRESS, interface, connection.version, connection.remote, connection.local, TCP,
        connection.remote_port, connection.local_port, _ACK,
    )  # fmt: skip
    goes = replace(
        comes,
        hook=EGRESS,
        source=comes.destination,
        destination=comes.source,
        source_port=comes.destination_port,
        destination_port=comes.source_port,
    )
    return [Managing(each, text, purpose) for each, asked in ((comes, ingress), (goes, egress)) if asked]


def _first_packets(listener: Listener, interface: str, ingress: bool, egress: bool) -> list[Managing]:
    """Of a client of this host that connects: over loopback each packet meets both hooks."""
    connection = Connection(listener.version, listener.address, listener.port, listener.address, _EPHEMERAL)
    text = f"new connections to {_place(listener.version, listener.address, listener.port)}"
    found = []
    for packet in _loopback_packets(connection):
        if ingress if packet.hook == INGRESS else egress:
            found.append(Managing(replace(packet, interface=interface), text, "api_listener"))
    return found


def _loopback_packets(connection: Connection) -> list[Packet]:
    asked = _both_ways(connection, "", _LOOPBACK, True, True)
    asked += _both_ways(_swapped(connection), "", _LOOPBACK, True, True)
    return [
        replace(
            each.packet,
            tcp_flags=_SYN if each.packet.destination_port == connection.local_port else _ACK | _SYN,
        )
        for each in asked
    ]


def _swapped(each: Connection) -> Connection:
    """From the other end."""
    return Connection(each.version, each.remote, each.remote_port, each.local, each.local_port, each.is_ssh)


def _in_words(connection: Connection, purpose: str) -> str:
    remote = _place(connection.version, connection.remote, connection.remote_port)
    local = _place(connection.version, connection.local, connection.local_port)
    return f"{'the SSH session' if purpose == 'ssh' else 'the API client'} {remote} to {local}"


def _place(version: int, address: int, port: int) -> str:
    text = format_address(version, address)
    return f"[{text}]:{port}" if version == 6 else f"{text}:{port}"


# -- judging


def cuts(
    packets: Iterable[Managing], before: Rules, after: Rules, options: tuple[int, int], is_new: bool = False
) -> list[Cut]:
    """`options`: OPTION_* by hook. `is_new`: nothing judged these packets until now."""
    found = []
    for each in packets:
        best = winner(each.packet, after)
        drops = best.drops if best else _default_drops(each.packet, options)
        if drops and (is_new or passes(each.packet, before, options)):
            found.append(Cut(each, best.handle if best else None))
    return found


def passes(packet: Packet, rules: Rules, options: tuple[int, int]) -> bool:
    best = winner(packet, rules)
    return not (best.drops if best else _default_drops(packet, options))


def _default_drops(packet: Packet, options: tuple[int, int]) -> bool:
    return bool(options[packet.hook] & C["OPTION_DEFAULT_DROP"])


def concerned(
    packets: Sequence[Managing],
    removed: Sequence[Record],
    written: Sequence[Record],
    before: Rules,
    after: Rules,
) -> list[Managing]:
    """Of the packets, those that a change may drop: a few rules are looked at, before all rules are."""
    if not packets or len(removed) + len(written) > _FEW:
        return list(packets)
    drops = [each.rule for each in written if each.rule.enabled and each.rule.action == "drop"]
    allows = [each.rule for each in removed if each.rule.enabled and each.rule.action == "allow"]
    return [
        each
        for each in packets
        if any(matches(rule, each.packet, after.sets) for rule in drops)
        or any(matches(rule, each.packet, before.sets) for rule in allows)
    ]


def names_listener(rule: Rule, listener: Listener) -> bool:
    """Whether a drop rule for everybody names just the port that the API listens on."""
    port = PortRange(listener.port, listener.port)
    return (
        rule.enabled
        and rule.action == "drop"
        and not rule.asks_sources
        and not rule.sets
        and port in rule.destination_ports
        and matches(rule, _knock(listener), {})
    )


def knocks(listener: Listener) -> Managing:
    """A new connection to the listener, wherever it comes in."""
    text = f"new connections to {_place(listener.version, listener.address, listener.port)}"
    return Managing(_knock(listener), text, "api_listener")


def _knock(listener: Listener) -> Packet:
    return Packet(
        INGRESS, _LOOPBACK, listener.version, listener.address, listener.address, TCP,
        _EPHEMERAL, listener.port, _SYN,
    )  # fmt: skip
