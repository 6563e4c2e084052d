"""The independent judge of the tests: rules and a frame in, verdict, reason and winning rule out.

It owns a second, naive reading of the contract. It must never import the product, share a table with it or
be made fast: it is right because one can read it next to the contract. Every multi-byte field is big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

Rule = Mapping[str, Any]
Address = IPv4Address | IPv6Address

TCP, UDP, ICMP, ICMPV6, SCTP, DCCP, UDPLITE = 6, 17, 1, 58, 132, 33, 136
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION_OPTIONS, MOBILITY = 0, 43, 44, 51, 60, 135
EXTENSION_HEADERS = {HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION_OPTIONS, MOBILITY}
MAX_EXTENSION_HEADERS = 10
VLAN_TAGS = {0x8100, 0x88A8, 0x9100}
MAX_VLAN_TAGS = 2
PROTOCOLS = {
    "icmp": ICMP, "igmp": 2, "tcp": TCP, "udp": UDP, "dccp": DCCP, "gre": 47, "esp": 50, "ah": AH,
    "icmpv6": ICMPV6, "ospf": 89, "pim": 103, "vrrp": 112, "sctp": SCTP, "udplite": UDPLITE,
    "hopopt": 0, "ipip": 4, "egp": 8, "ipv6": 41, "rsvp": 46, "ipv6-nonxt": 59, "eigrp": 88, "ipcomp": 108,
    "l2tp": 115, "mpls-in-ip": 137,
}  # fmt: skip
TCP_FLAGS = {
    "fin": 0x01, "syn": 0x02, "rst": 0x04, "psh": 0x08, "ack": 0x10, "urg": 0x20, "ece": 0x40, "cwr": 0x80,
}  # fmt: skip
# Reasons after which nothing of the IP header may be believed, so that no rule can be asked.
UNREADABLE = {"malformed_link", "malformed_ipv4", "malformed_ipv6"}
MATCH_FIELDS = {
    "enabled", "direction", "interfaces", "family", "sources", "destinations", "protocols",
    "source_ports", "destination_ports", "icmp_types", "tcp_flags",
}  # fmt: skip
OTHER_FIELDS = {
    "id", "description", "action", "priority", "labels", "ttl", "expires_at", "created_at",
    "updated_at", "stats", "mode",
}  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """`verdict` is "pass" or "drop"; `rule_id` is that of the winning rule, None where no rule decided. `observed`:
    ids of the rules that only observe and would have decided, best first; `others`: of the enforcing rules that
    matched beside the winner, in winning order."""

    verdict: str
    reason: str
    rule_id: str | None = None
    observed: tuple[str | None, ...] = ()
    others: tuple[str | None, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Packet:
    """What could be read of a frame; `reason` is "default", "not_ip" or malformed_*. None: not there."""

    reason: str
    version: int | None = None
    source: Address | None = None
    destination: Address | None = None
    protocol: int | None = None
    fragment: bool = False  # first or later; an atomic IPv6 fragment is a whole packet
    ports: tuple[int, int] | None = None  # source, destination
    icmp: tuple[int, int] | None = None  # type, code
    tcp_flags: frozenset[str] | None = None
    hop_limit: int | None = None  # of IPv6
    is_arp: bool = False


# --- the verdict -------------------------------------------------------------------------------------------


def judge(
    rules: Iterable[Rule],
    frame: bytes,
    *,
    direction: str,
    interface: str,
    link: str = "ethernet",
    default_action: str = "allow",
    fragments: str = "match",
    malformed: str = "drop",
    never_drop: Iterable[str] = (),
    pass_arp: bool = True,
    pass_neighbor_discovery: bool = True,
    pass_dhcp: bool = True,
    pass_path_mtu: bool = True,
    sets: Mapping[str, Iterable[str]] | None = None,
) -> Judgement:
    """Judge one frame by rules in the API's JSON form, oldest first. `direction` is the hook's own; `sets`: the entries
    of each, by name."""
    rules = [with_entries(rule, sets or {}) for rule in rules]
    packet = parse(frame, link)
    if packet.reason == "not_ip":
        is_dropped = packet.is_arp and default_action == "drop" and not pass_arp
        return Judgement("drop" if is_dropped else "pass", "not_ip")
    is_malformed = packet.reason != "default"
    if is_malformed and malformed == "drop":
        return Judgement("drop", packet.reason)
    if packet.reason in UNREADABLE:
        return Judgement("pass", packet.reason)
    if packet.fragment and fragments == "drop":
        return Judgement("drop", "fragment")
    remote = packet.source if direction == "ingress" else packet.destination
    if any(remote in network(prefix) for prefix in never_drop):
        return Judgement("pass", "never_drop")
    matching = [rule for rule in rules if matches(rule, packet, direction, interface)]
    matching.sort(key=rank)  # keeps equals in their order, the older rule first
    enforcing = [rule for rule in matching if rule.get("mode", "enforce") == "enforce"]
    observing = [rule for rule in matching if rule.get("mode", "enforce") == "observe"]
    # Among equals, the rule that enforces is taken to win.
    observed = tuple(rule.get("id") for rule in observing if not enforcing or rank(rule) < rank(enforcing[0]))
    if enforcing:
        winner, *others = enforcing
        rest = tuple(rule.get("id") for rule in others)
        return Judgement(verdict_of(winner.get("action", "drop")), "rule", winner.get("id"), observed, rest)
    if is_malformed:
        return Judgement("pass", packet.reason, observed=observed)
    essentials = (
        (pass_neighbor_discovery, is_neighbor_discovery(packet)),
        (pass_dhcp, is_dhcp(packet, direction)),
        (pass_path_mtu, is_path_mtu(packet)),
    )
    if default_action == "drop" and any(passes and found for passes, found in essentials):
        return Judgement("pass", "essential", observed=observed)
    return Judgement(verdict_of(default_action), "default", observed=observed)


def is_neighbor_discovery(packet: Packet) -> bool:
    """Router and neighbour solicitation and advertisement, redirect; no router may have passed it on."""
    return (
        packet.version == 6
        and packet.protocol == ICMPV6
        and packet.icmp is not None
        and packet.icmp[0] in (133, 134, 135, 136, 137)
        and packet.hop_limit == 255
        and not packet.fragment
    )


def is_dhcp(packet: Packet, direction: str) -> bool:
    """From a server where it comes in, to one where it goes out."""
    server, client = (67, 68) if packet.version == 4 else (547, 546)
    wanted = (server, client) if direction == "ingress" else (client, server)
    return packet.protocol == UDP and packet.ports == wanted and not packet.fragment


def is_path_mtu(packet: Packet) -> bool:
    if packet.icmp is None or packet.fragment:
        return False
    if packet.version == 4:
        return packet.protocol == ICMP and packet.icmp == (3, 4)
    return packet.protocol == ICMPV6 and packet.icmp[0] == 2


def verdict_of(action: str) -> str:
    return {"allow": "pass", "drop": "drop"}[action]


def rank(rule: Rule) -> tuple[int, int]:
    """The lowest wins: the priority's number, and drop before allow within one priority."""
    return rule.get("priority", 1000), ["drop", "allow"].index(rule.get("action", "drop"))


# --- one rule against one packet ---------------------------------------------------------------------------


def matches(rule: Rule, packet: Packet, direction: str, interface: str) -> bool:
    unknown = set(rule) - MATCH_FIELDS - OTHER_FIELDS
    if unknown:
        raise ValueError(f"no such rule field: {sorted(unknown)}")
    return (
        rule.get("enabled", True) is True
        and rule.get("direction", "ingress") in (direction, "both")
        and interface_matches(elements(rule, "interfaces"), interface)
        and family_matches(rule.get("family", "any"), packet)
        and protocol_matches(rule, packet)
        and address_matches(elements(rule, "sources"), packet.source)
        and address_matches(elements(rule, "destinations"), packet.destination)
        and port_matches(elements(rule, "source_ports"), packet.ports and packet.ports[0])
        and port_matches(elements(rule, "destination_ports"), packet.ports and packet.ports[1])
        and icmp_matches(elements(rule, "icmp_types"), packet.icmp)
        and flags_match(asked_flags(rule), packet.tcp_flags)
    )


def with_entries(rule: Rule, sets: Mapping[str, Iterable[str]]) -> Rule:
    """The rule with the entries of the sets that it names in their place."""
    expanded = dict(rule)
    for side in ("sources", "destinations"):
        asked = elements(rule, side)
        plain = [element for element in asked if not element.startswith("@")]
        plain += [entry for element in asked if element.startswith("@") for entry in sets[element[1:]]]
        if asked:
            expanded[side] = plain
        if asked and not plain:
            expanded["enabled"] = False  # of empty sets alone: no packet is from there
    return expanded


def counted_entries(
    rules: Iterable[Rule], sets: Mapping[str, Iterable[str]], frame: bytes, judgement: Judgement, link: str
) -> set[tuple[str, str, str | None]]:
    """Entries of sets that count a packet which was judged so: (set, entry, rule). No two rules may have equal ranks.
    Where an address lies in several entries the widest counts: of each set, or, of a rule that asks for one
    side's addresses and nothing else, of all that it names together with what stands beside them."""
    packet = parse(frame, link)
    deciding = {judgement.rule_id, *judgement.observed} - {None}
    counted: set[tuple[str, str, str | None]] = set()
    for rule in rules:
        if rule.get("id") not in deciding:
            continue
        for side, address in (("sources", packet.source), ("destinations", packet.destination)):
            named = [element[1:] for element in elements(rule, side) if element.startswith("@")]
            plain = [element for element in elements(rule, side) if not element.startswith("@")]
            found = {name: widest(sets[name], address) for name in named}
            if is_addresses_alone(rule):
                best = widest([*plain, *(entry for entry in found.values() if entry)], address)
                found = {
                    name: entry
                    for name, entry in found.items()
                    if entry and network(entry) == network(best or "")
                }
            counted |= {(name, entry, rule.get("id")) for name, entry in found.items() if entry}
    return counted


def widest(prefixes: Iterable[str], address: Address | None) -> str | None:
    covering = [prefix for prefix in prefixes if address in network(prefix)]
    return min(covering, key=lambda prefix: network(prefix).prefixlen, default=None)


def is_addresses_alone(rule: Rule) -> bool:
    """Enforcing, and of one side alone."""
    asked = {field for field in MATCH_FIELDS - {"enabled", "direction", "family"} if elements(rule, field)}
    is_enforcing = rule.get("mode", "enforce") == "enforce" and not rule.get("tcp_flags")
    return asked in ({"sources"}, {"destinations"}) and is_enforcing


def elements(rule: Rule, field: str) -> list[Any]:
    """A list field's elements; one bare string or number stands for a list of one."""
    value = rule.get(field)
    if value is None:
        return []
    return [value] if isinstance(value, str | int) else list(value)


def interface_matches(globs: list[str], interface: str) -> bool:
    return not globs or any(fnmatchcase(interface, glob) for glob in globs)


def family_matches(family: str, packet: Packet) -> bool:
    return packet.version in {"any": (4, 6), "ipv4": (4,), "ipv6": (6,)}[family]


def protocol_matches(rule: Rule, packet: Packet) -> bool:
    asked = [protocol_number(element) for element in elements(rule, "protocols")]
    if asked:
        return packet.protocol in asked
    # A field that only some protocols have implies them; two such fields imply what both have.
    asks_ports = elements(rule, "source_ports") or elements(rule, "destination_ports")
    if asks_ports and packet.protocol not in (TCP, UDP):
        return False
    if elements(rule, "icmp_types") and packet.protocol not in (ICMP, ICMPV6):
        return False
    return not (asked_flags(rule) and packet.protocol != TCP)


def protocol_number(element: str | int) -> int:
    if isinstance(element, str) and not element.isdigit():
        return PROTOCOLS[element.lower()]
    return int(element)


def address_matches(prefixes: list[str], address: Address | None) -> bool:
    # An address is never "in" a prefix of the other family.
    return not prefixes or any(address in network(prefix) for prefix in prefixes)


@cache
def network(prefix: str) -> IPv4Network | IPv6Network:
    return ip_network(prefix)


def port_matches(asked: list[str | int], port: int | None) -> bool:
    if not asked:
        return True
    return port is not None and any(low <= port <= high for low, high in map(port_range, asked))


def port_range(element: str | int) -> tuple[int, int]:
    first, _, last = str(element).partition("-")
    return int(first), int(last or first)


def icmp_matches(asked: list[str | int], icmp: tuple[int, int] | None) -> bool:
    if not asked:
        return True
    if icmp is None:
        return False
    icmp_type, code = icmp
    return any(str(element) in (f"{icmp_type}", f"{icmp_type}/{code}") for element in asked)


def asked_flags(rule: Rule) -> tuple[set[str], set[str]] | None:
    """The flags that must be set and those that must be clear, or None where the rule asks for neither."""
    asked = rule.get("tcp_flags") or {}
    must_be_set, must_be_clear = set(asked.get("set") or ()), set(asked.get("unset") or ())
    return (must_be_set, must_be_clear) if must_be_set or must_be_clear else None


def flags_match(asked: tuple[set[str], set[str]] | None, flags: frozenset[str] | None) -> bool:
    if asked is None:
        return True
    must_be_set, must_be_clear = asked
    return flags is not None and must_be_set <= flags and not must_be_clear & flags


# --- bytes to packet ---------------------------------------------------------------------------------------


def parse(frame: bytes, link: str = "ethernet") -> Packet:
    if link == "ethernet":
        return parse_ethernet(frame)
    if link != "ip":
        raise ValueError(f"no such link type: {link}")
    version = frame[0] >> 4 if frame else None
    if version == 4:
        return parse_ipv4(frame)
    if version == 6:
        return parse_ipv6(frame)
    return Packet("malformed_link")


def parse_ethernet(frame: bytes) -> Packet:
    if len(frame) < 14:
        return Packet("malformed_link")
    ethertype, rest = u16(frame, 12), frame[14:]
    for _ in range(MAX_VLAN_TAGS):
        if ethertype in VLAN_TAGS:
            if len(rest) < 4:
                return Packet("malformed_link")
            ethertype, rest = u16(rest, 2), rest[4:]
    if ethertype == 0x0800:
        return parse_ipv4(rest)
    if ethertype == 0x86DD:
        return parse_ipv6(rest)
    return Packet("not_ip", is_arp=ethertype == 0x0806)


def parse_ipv4(data: bytes) -> Packet:
    if len(data) < 20 or data[0] >> 4 != 4:
        return Packet("malformed_ipv4")
    header_length, total_length = (data[0] & 0x0F) * 4, u16(data, 2)
    if header_length < 20 or header_length > len(data):
        return Packet("malformed_ipv4")
    if total_length < header_length or total_length > len(data):
        return Packet("malformed_ipv4")
    more_fragments, offset = bool(u16(data, 6) & 0x2000), u16(data, 6) & 0x1FFF
    source, destination, protocol = IPv4Address(data[12:16]), IPv4Address(data[16:20]), data[9]
    packet = Packet("default", 4, source, destination, protocol, fragment=more_fragments or offset != 0)
    if offset != 0:
        return packet
    return read_transport(packet, data[header_length:total_length])


def parse_ipv6(data: bytes) -> Packet:
    if len(data) < 40 or data[0] >> 4 != 6:
        return Packet("malformed_ipv6")
    payload_length, next_header, payload = u16(data, 4), data[6], data[40:]
    if payload_length > len(payload):
        return Packet("malformed_ipv6")
    is_jumbogram = payload_length == 0 and next_header == HOP_BY_HOP
    if not is_jumbogram:
        payload = payload[:payload_length]
    packet = Packet("default", 6, IPv6Address(data[8:24]), IPv6Address(data[24:40]), next_header)
    packet = replace(packet, hop_limit=data[7])
    return walk_extensions(packet, payload)


def walk_extensions(packet: Packet, payload: bytes) -> Packet:
    """Follow the extension headers to the transport header; `packet.protocol` is that of the header ahead."""
    walked = 0
    while packet.protocol in EXTENSION_HEADERS:
        if walked == MAX_EXTENSION_HEADERS or len(payload) < 8:
            return replace(packet, reason="malformed_extension")
        if packet.protocol == FRAGMENT:
            length = 8
            more_fragments, offset = bool(u16(payload, 2) & 1), u16(payload, 2) >> 3
            packet = replace(packet, fragment=packet.fragment or more_fragments or offset != 0)
            if offset != 0:
                return replace(packet, protocol=payload[0])
        elif packet.protocol == AH:
            length = (payload[1] + 2) * 4
        else:
            length = (payload[1] + 1) * 8
        if length > len(payload):
            return replace(packet, reason="malformed_extension")
        packet, payload = replace(packet, protocol=payload[0]), payload[length:]
        walked += 1
    return read_transport(packet, payload)


def read_transport(packet: Packet, payload: bytes) -> Packet:
    """Read the transport header at the start of `payload`, which ends where the IP length says."""
    minimum = {TCP: 20, UDP: 8, UDPLITE: 8, SCTP: 12, DCCP: 12, ICMP: 8, ICMPV6: 4}.get(packet.protocol or 0)
    if minimum is None:
        return packet  # not a protocol whose header is read
    if len(payload) < minimum or not lengths_are_possible(packet.protocol, payload):
        return replace(packet, reason="malformed_fragment" if packet.fragment else "malformed_l4")
    if packet.protocol in (ICMP, ICMPV6):
        return replace(packet, icmp=(payload[0], payload[1]))
    packet = replace(packet, ports=(u16(payload, 0), u16(payload, 2)))
    if packet.protocol == TCP:
        names = frozenset(name for name, bit in TCP_FLAGS.items() if payload[13] & bit)
        return replace(packet, tcp_flags=names)
    return packet


def lengths_are_possible(protocol: int | None, payload: bytes) -> bool:
    if protocol == TCP:
        header_length = (payload[12] >> 4) * 4
        return 20 <= header_length <= len(payload)
    if protocol == UDP:
        return u16(payload, 4) == 0 or u16(payload, 4) >= 8  # 0 is a jumbogram's
    return True


def u16(data: bytes, offset: int) -> int:
    value: int = struct.unpack_from("!H", data, offset)[0]
    return value
