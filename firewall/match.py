"""The match fields of a rule that are not addresses: protocols, ports, ICMP types, TCP flags, durations.

Owns their text forms (product contract) and every message about a wrong one: parsers raise ValueError.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58

# IANA protocol numbers with the names of the registry, lower case.
PROTOCOL_NUMBERS = {
    "hopopt": 0, "icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "egp": 8, "udp": 17, "dccp": 33, "ipv6": 41,
    "rsvp": 46, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "ipv6-nonxt": 59, "eigrp": 88, "ospf": 89,
    "pim": 103, "ipcomp": 108, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136, "mpls-in-ip": 137,
}  # fmt: skip
PROTOCOL_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}
PROTOCOL_ALIASES = {"ipv6-icmp": 58, "icmp6": 58, "udp-lite": 136, "ipencap": 4, "ospfigp": 89}

PORT_PROTOCOLS = frozenset((TCP, UDP, 33, 132, 136))
ICMP_PROTOCOLS = frozenset((ICMP, ICMPV6))
FLAG_BITS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?:[0-9]{1,10}[smhdw])+")
TTL_MAX_S = 10 * 365 * 86400


class PortRange(NamedTuple):
    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class IcmpType(NamedTuple):
    """`code` None: any."""

    type: int
    code: int | None

    def __str__(self) -> str:
        return str(self.type) if self.code is None else f"{self.type}/{self.code}"


class TcpFlags(NamedTuple):
    """Bits of the flags byte that must be 1 and that must be 0."""

    set: int
    unset: int

    def matches(self, flags: int) -> bool:
        return flags & self.set == self.set and not flags & self.unset


def parse_protocol(value: object) -> int:
    """A name, a number or a number as text."""
    if isinstance(value, str):
        name = value.lower()
        known = PROTOCOL_NUMBERS.get(name, PROTOCOL_ALIASES.get(name))
        if known is not None:
            return known
        if not (value.isascii() and value.isdecimal()):
            raise ValueError(f"{value!r} is no protocol known by name; use its number, 0 to 255")
        value = int(value[:6])
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 255:
        raise ValueError(f"{value!r} is not a protocol number from 0 to 255")
    return value


def format_protocol(number: int) -> str:
    return PROTOCOL_NAMES.get(number, str(number))


def _number(text: str, most: int, what: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 6 or int(text) > most:
        raise ValueError(f"{text!r} is not {what} from 0 to {most}")
    return int(text)


def parse_ports(value: object) -> PortRange:
    """`80`, `"80"` or `"8000-8100"`."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not a port or a range such as "8000-8100"')
    first_text, dash, last_text = value.partition("-")
    first = _number(first_text, 65535, "a port")
    last = _number(last_text, 65535, "a port") if dash else first
    if last < first:
        raise ValueError(f"{value!r} ends before it starts; {last}-{first} may have been meant")
    return PortRange(first, last)


def parse_icmp_type(value: object) -> IcmpType:
    """`"8"`, `8` or `"3/1"` (type/code)."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not an ICMP type such as "8" or type/code such as "3/1"')
    type_text, slash, code_text = value.partition("/")
    number = _number(type_text, 255, "an ICMP type")
    return IcmpType(number, _number(code_text, 255, "an ICMP code") if slash else None)


def parse_flags(names: list[str]) -> int:
    bits = 0
    for name in names:
        bit = FLAG_BITS.get(name.lower())
        if bit is None:
            raise ValueError(f"{name!r} is not one of {', '.join(FLAG_BITS)}")
        bits |= bit
    return bits


def format_flags(bits: int) -> list[str]:
    return [name for name, bit in FLAG_BITS.items() if bits & bit]


def parse_duration(value: object) -> int:
    """Seconds: an integer, or text such as `"90s"`, `"1h"`, `"1h30m"`, `"7d"`."""
    if isinstance(value, str):
        if not _DURATION.fullmatch(value):
            if not (value.isascii() and value.isdecimal()):
                raise ValueError(f'{value!r} is not a number of seconds or a duration such as "1h" or "7d"')
            value = int(value[:12])
        else:
            value = sum(
                int(count) * _UNITS_S[unit] for count, unit in re.findall(r"([0-9]+)([smhdw])", value)
            )
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= TTL_MAX_S:
        raise ValueError(f"must be from 1 second to {TTL_MAX_S} seconds (ten years)")
    return value
