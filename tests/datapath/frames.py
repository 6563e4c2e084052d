"""Plain Ethernet frames for tests about rules: what a test does not name has a value that no rule asks for."""

from __future__ import annotations

from ipaddress import ip_address

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6Unknown, IPv6
from scapy.packet import Packet, Raw

from tests.packets import ETHERNET

SOURCE = {4: "192.0.2.200", 6: "2001:db8:99::200"}
DESTINATION = {4: "198.51.100.200", 6: "2001:db8:98::200"}


def ip(payload: Packet, source: str | None = None, destination: str | None = None, **fields: int) -> bytes:
    """The version is that of the addresses, 4 where none is given."""
    version = ip_address(source or destination or SOURCE[4]).version
    header = (IP if version == 4 else IPv6)(
        src=source or SOURCE[version], dst=destination or DESTINATION[version], **fields
    )
    return bytes(ETHERNET / header / payload)


def tcp(
    source: str | None = None,
    destination: str | None = None,
    sport: int = 50000,
    dport: int = 50001,
    flags: str = "S",
) -> bytes:
    return ip(TCP(sport=sport, dport=dport, flags=flags), source, destination)


def udp(
    source: str | None = None, destination: str | None = None, sport: int = 50000, dport: int = 50001
) -> bytes:
    return ip(UDP(sport=sport, dport=dport), source, destination)


def icmp(kind: int, code: int = 0) -> bytes:
    return ip(ICMP(type=kind, code=code))


def icmp6(kind: int, code: int = 0) -> bytes:
    return ip(ICMPv6Unknown(type=kind, code=code, cksum=0, msgbody=b""), SOURCE[6])


def protocol(number: int, version: int = 4) -> bytes:
    """A packet of a protocol by number, with bytes enough for any header."""
    field = {"proto": number} if version == 4 else {"nh": number}
    return ip(Raw(b"\x50" * 40), SOURCE[version], **field)
