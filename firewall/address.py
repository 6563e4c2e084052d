"""Addresses and prefixes: text to numbers and back.

Owns the Prefix value and every message about a wrong address. Knows nothing of rules.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

BITS = {4: 32, 6: 128}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class Prefix(NamedTuple):
    """An IPv4 (`version` 4) or IPv6 (6) network: `length` bits of `address`, the rest 0."""

    version: int
    address: int
    length: int

    def __str__(self) -> str:
        text = format_address(self.version, self.address)
        return text if self.length == BITS[self.version] else f"{text}/{self.length}"

    def covers(self, other: Prefix) -> bool:
        if self.version != other.version or self.length > other.length:
            return False
        return (self.address ^ other.address) >> (BITS[self.version] - self.length) == 0


def format_address(version: int, address: int) -> str:
    return socket.inet_ntop(_FAMILY[version], address.to_bytes(BITS[version] // 8, "big"))


def host_bits(version: int, length: int) -> int:
    return (1 << (BITS[version] - length)) - 1


def parse_prefix(text: str) -> Prefix:
    """`203.0.113.7`, `203.0.113.0/24`, `2001:db8::/32`. Raises ValueError with what is wrong and what was meant."""
    address_text, slash, length_text = text.partition("/")
    version = 6 if ":" in address_text else 4
    try:
        address = int.from_bytes(socket.inet_pton(_FAMILY[version], address_text), "big")
    except (OSError, UnicodeEncodeError, ValueError):
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address or CIDR") from None
    bits = BITS[version]
    if not slash:
        return Prefix(version, address, bits)
    is_number = length_text.isascii() and length_text.isdecimal() and len(length_text) <= 3
    if not is_number or int(length_text) > bits:
        raise ValueError(f"{text!r}: the prefix length must be 0 to {bits}")
    length = int(length_text)
    if address & host_bits(version, length):
        network = Prefix(version, address & ~host_bits(version, length), length)
        raise ValueError(f"{text!r} has host bits set; the network is {network}")
    return Prefix(version, address, length)
