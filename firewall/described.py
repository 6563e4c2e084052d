"""A described packet as bytes, for programs that read bytes: what is not said gets a value that is written here.

Owns the fields of a description, their defaults and the bytes. Fields that the packet has no room for (ports of a later
fragment) are left out of it, as they are on the wire.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from firewall.address import BITS, parse_prefix
from firewall.errors import InvalidInput, Problem
from firewall.match import (
    ICMP,
    ICMP_PROTOCOLS,
    ICMPV6,
    PORT_PROTOCOLS,
    TCP,
    UDP,
    IcmpType,
    parse_flags,
    parse_icmp_type,
    parse_protocol,
)

Fragment = Literal["none", "first", "later"]
T = TypeVar("T")
FIELDS = frozenset(
    (
        "source",
        "destination",
        "protocol",
        "source_port",
        "destination_port",
        "tcp_flags",
        "icmp_type",
        "fragment",
    )
)
# Addresses of documentation (RFC 5737, RFC 3849) and the first dynamic port (RFC 6335).
SOURCE = {4: 0xC0000201, 6: 0x20010DB8 << 96 | 1}
DESTINATION = {4: 0xC6336401, 6: 0x20010DB8 << 96 | 2}
PORT = 49152
ECHO = {ICMP: 8, ICMPV6: 128}
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_FRAGMENT_HEADER = 44
_LATER_OFFSET = 185  # in units of 8 bytes: behind a first fragment of 1480
_PAYLOAD = bytes(26)
_SYN = 2


@dataclass(frozen=True, slots=True)
class Description:
    """A packet that can be made: addresses are numbers as wide as `version` says."""

    version: int
    source: int
    destination: int
    protocol: int
    source_port: int
    destination_port: int
    tcp_flags: int
    icmp: IcmpType
    fragment: Fragment


def description_from_fields(fields: Mapping[str, object]) -> Description:
    """Raises InvalidInput with a problem for each fault."""
    problems: list[Problem] = []

    def value(name: str, parse: Callable[[object], T]) -> T | None:
        if fields.get(name) is None:
            return None
        try:
            return parse(fields[name])
        except ValueError as error:
            problems.append(Problem(f"/{name}", str(error)))
            return None

    problems += [Problem(f"/{name}", "unknown field") for name in fields if name not in FIELDS]
    source, destination = value("source", _address), value("destination", _address)
    icmp = value("icmp_type", parse_icmp_type)
    ports = value("source_port", _port), value("destination_port", _port)
    flags = value("tcp_flags", _flags)
    version = next((each[0] for each in (source, destination) if each is not None), 4)
    protocol = value("protocol", parse_protocol)
    if source is not None and destination is not None and source[0] != destination[0]:
        problems.append(Problem("/destination", "is of another IP version than source"))
    if protocol is None:
        protocol = TCP if icmp is None else ICMP if version == 4 else ICMPV6
    elif source is None and destination is None and protocol == ICMPV6:
        version = 6
    for name, given, needed in (
        ("source_port", ports[0], PORT_PROTOCOLS),
        ("destination_port", ports[1], PORT_PROTOCOLS),
        ("tcp_flags", flags, frozenset((TCP,))),
        ("icmp_type", icmp, ICMP_PROTOCOLS),
    ):
        if given is not None and protocol not in needed:
            problems.append(Problem(f"/{name}", "packets of this protocol have no such field"))
    fragment = value("fragment", _fragment) or "none"
    if problems:
        raise _invalid(problems)
    return Description(
        version,
        SOURCE[version] if source is None else source[1],
        DESTINATION[version] if destination is None else destination[1],
        protocol,
        PORT if ports[0] is None else ports[0],
        PORT if ports[1] is None else ports[1],
        _SYN if flags is None else flags,
        icmp or IcmpType(ECHO.get(protocol, 0), None),
        fragment,
    )


def _invalid(problems: list[Problem]) -> InvalidInput:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    hint = "the fields of a packet are hook, interface, " + ", ".join(sorted(FIELDS))
    detail = f"{problems[0].pointer}: {problems[0].detail}{more}"
    return InvalidInput(detail, hint, tuple(problems), "invalid_packet")


def _address(value: object) -> tuple[int, int]:
    """IP version and number."""
    prefix = parse_prefix(value) if isinstance(value, str) else None
    if prefix is None or prefix.length != BITS[prefix.version]:
        raise ValueError(f"{value!r} is not one IPv4 or IPv6 address")
    return prefix.version, prefix.address


def _port(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:6])
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise ValueError(f"{value!r} is not a port from 0 to 65535")
    return value


def _flags(value: object) -> int:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError('must be a list of the flags that are set, such as ["syn"]')
    return parse_flags(names)


def _fragment(value: object) -> Fragment:
    if value == "none" or value is False:
        return "none"
    if value == "first":
        return "first"
    if value == "later":
        return "later"
    raise ValueError(f"{value!r} is not one of none, first, later")


# -- bytes


def frame_of(packet: Description, has_ethernet: bool) -> bytes:
    """Checksums are 0: filters do not look at them."""
    content = _PAYLOAD if packet.fragment == "later" else _transport(packet)
    made = (_ipv4 if packet.version == 4 else _ipv6)(packet, content)
    ethernet = bytes.fromhex("020000000002020000000001") + _ETHERTYPE[packet.version].to_bytes(2, "big")
    return ethernet + made if has_ethernet else made


def _transport(packet: Description) -> bytes:
    ports = struct.pack("!HH", packet.source_port, packet.destination_port)
    if packet.protocol == TCP:
        return ports + bytes(8) + bytes((5 << 4, packet.tcp_flags)) + bytes(6) + _PAYLOAD
    if packet.protocol == UDP:
        return ports + struct.pack("!HH", 8 + len(_PAYLOAD), 0) + _PAYLOAD
    if packet.protocol in PORT_PROTOCOLS:
        return ports + bytes(8) + _PAYLOAD
    if packet.protocol in ICMP_PROTOCOLS:
        return bytes((packet.icmp.type, packet.icmp.code or 0)) + bytes(6) + _PAYLOAD
    return _PAYLOAD


def _ipv4(packet: Description, content: bytes) -> bytes:
    cut = {"none": 0, "first": 0x2000, "later": _LATER_OFFSET}[packet.fragment]
    start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 1, cut, 64, packet.protocol, 0)
    return start + packet.source.to_bytes(4, "big") + packet.destination.to_bytes(4, "big") + content


def _ipv6(packet: Description, content: bytes) -> bytes:
    following = packet.protocol
    if packet.fragment != "none":
        cut = 1 if packet.fragment == "first" else _LATER_OFFSET << 3
        content = struct.pack("!BBHI", packet.protocol, 0, cut, 1) + content
        following = _FRAGMENT_HEADER
    start = struct.pack("!IHBB", 6 << 28, len(content), following, 64)
    return start + packet.source.to_bytes(16, "big") + packet.destination.to_bytes(16, "big") + content
