"""The table of packet cases: a sentence, a frame, and what a parser must find in it, written down by hand.

Nothing here may be computed by the oracle or by the product: the expectations are the third opinion. Every IP
packet goes from SOURCE4/6 to DESTINATION4/6. Ethernet frames have at least 14 bytes (the kernel's test run
takes no shorter ones); only cases of link "ip" are shorter. Every address is given: scapy would look up what
is missing in this machine's routes and neighbours.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, GRE, LLC, SNAP, STP, Dot1Q, Dot3, Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw

SOURCE4, DESTINATION4 = "192.0.2.7", "198.51.100.9"
SOURCE6, DESTINATION6 = "2001:db8:1::7", "2001:db8:2::9"

SOURCE_MAC, DESTINATION_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
ETHERNET = Ether(src=SOURCE_MAC, dst=DESTINATION_MAC)
LENGTH_FRAME = Dot3(src=SOURCE_MAC, dst=DESTINATION_MAC)
ARP_REQUEST = ARP(hwsrc=SOURCE_MAC, psrc=SOURCE4, pdst=DESTINATION4)
PING6_REQUEST = ICMPv6EchoRequest(cksum=0)
SYN = TCP(sport=40000, dport=22, flags="S")
QUERY = UDP(sport=40001, dport=53) / Raw(b"eight by")
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS, MOBILITY = 0, 43, 44, 51, 60, 135


@dataclass(frozen=True)
class Expect:
    """`reason` is the one given where there are no rules; a field that is None must not be found."""

    reason: str = "default"
    version: int | None = None
    protocol: int | None = None
    ports: tuple[int, int] | None = None
    icmp: tuple[int, int] | None = None
    tcp_flags: frozenset[str] | None = None
    fragment: bool = False


@dataclass(frozen=True)
class Case:
    name: str
    frame: bytes
    expect: Expect
    link: str = "ethernet"


NOT_IP = Expect("not_ip")
BAD_LINK, BAD4, BAD6 = Expect("malformed_link"), Expect("malformed_ipv4"), Expect("malformed_ipv6")
TCP4 = Expect("default", 4, 6, ports=(40000, 22), tcp_flags=frozenset({"syn"}))
UDP4 = Expect("default", 4, 17, ports=(40001, 53))
PING4 = Expect("default", 4, 1, icmp=(8, 0))
TCP6, UDP6 = replace(TCP4, version=6), replace(UDP4, version=6)
PING6 = Expect("default", 6, 58, icmp=(128, 0))


def no_l4(version: int, protocol: int, *, fragment: bool = False) -> Expect:
    return Expect("default", version, protocol, fragment=fragment)


def bad_l4(version: int, protocol: int) -> Expect:
    return Expect("malformed_l4", version, protocol)


def bad_first(version: int, protocol: int) -> Expect:
    return Expect("malformed_fragment", version, protocol, fragment=True)


def bad_extension(protocol: int, *, fragment: bool = False) -> Expect:
    return Expect("malformed_extension", 6, protocol, fragment=fragment)


def ethernet(ethertype: int) -> Packet:
    return Ether(src=SOURCE_MAC, dst=DESTINATION_MAC, type=ethertype)


def ipv4(**fields: Any) -> Packet:
    return IP(src=SOURCE4, dst=DESTINATION4, **fields)


def ipv6(**fields: Any) -> Packet:
    return IPv6(src=SOURCE6, dst=DESTINATION6, **fields)


def ether4(payload: Packet | bytes, **fields: Any) -> bytes:
    """An Ethernet frame that holds IPv4; `fields` overwrite those of the IP header."""
    return bytes(ETHERNET / ipv4(**fields) / payload)


def ether6(payload: Packet | bytes, **fields: Any) -> bytes:
    return bytes(ETHERNET / ipv6(**fields) / payload)


def padded(frame: bytes) -> bytes:
    """Ethernet's shortest frame; its padding reads as ports to a parser that goes past the IP length."""
    return frame + b"\x55" * (60 - len(frame))


def extension(kind: int, next_header: int, length: int = 8) -> bytes:
    """One IPv6 extension header of `length` bytes, filled so that reading it as TCP would find port 22."""
    if kind == FRAGMENT:
        return struct.pack("!BBHI", next_header, 0, 0, 1)  # an atomic fragment
    units = length // 4 - 2 if kind == AUTHENTICATION else length // 8 - 1
    return bytes([next_header, units]) + b"\x00\x16" * (length // 2 - 1)


def chain(kinds: list[int], last: int, payload: Packet | bytes) -> bytes:
    """An Ethernet frame with these extension headers in a row, then protocol `last`."""
    following = [*kinds[1:], last]
    headers = [extension(kind, after) for kind, after in zip(kinds, following, strict=True)]
    return ether6(b"".join(headers) + bytes(payload), nh=kinds[0])


def fragment6(protocol: int, payload: Packet | bytes, *, offset: int, more: int) -> bytes:
    return ether6(IPv6ExtHdrFragment(nh=protocol, offset=offset, m=more, id=7) / payload)


# --- cases -------------------------------------------------------------------------------------------------


def plain() -> Iterator[Case]:
    sctp = SCTP(sport=40002, dport=3868) / SCTPChunkInit()
    dccp = Raw(struct.pack("!HHBBHI", 40003, 5001, 4, 0, 0, 1) + bytes(4))
    udplite = Raw(struct.pack("!HHHH", 40004, 5002, 8, 0) + b"data")
    for version, frame in ((4, ether4), (6, ether6)):
        ip = f"IPv{version}"
        proto = "proto" if version == 4 else "nh"
        yield Case(f"{ip} TCP SYN", frame(SYN), TCP4 if version == 4 else TCP6)
        yield Case(f"{ip} UDP", frame(QUERY), UDP4 if version == 4 else UDP6)
        yield Case(f"{ip} SCTP has ports", frame(sctp), Expect("default", version, 132, ports=(40002, 3868)))
        yield Case(
            f"{ip} DCCP has ports",
            frame(dccp, **{proto: 33}),
            Expect("default", version, 33, ports=(40003, 5001)),
        )
        yield Case(
            f"{ip} UDP-Lite has ports",
            frame(udplite, **{proto: 136}),
            Expect("default", version, 136, ports=(40004, 5002)),
        )
        yield Case(f"{ip} GRE has no ports", frame(GRE() / ipv4() / SYN, **{proto: 47}), no_l4(version, 47))
        yield Case(
            f"{ip} ESP has no ports",
            frame(ESP(spi=1, seq=1, data=b"\x16" * 32), **{proto: 50}),
            no_l4(version, 50),
        )
        yield Case(f"{ip} with unknown protocol 253", frame(Raw(b"?"), **{proto: 253}), no_l4(version, 253))
        yield Case(
            f"{ip} with unknown protocol 253 and no data", frame(b"", **{proto: 253}), no_l4(version, 253)
        )
        yield Case(f"IPv4 in {ip} is not looked into", frame(ipv4() / SYN, **{proto: 4}), no_l4(version, 4))
        yield Case(f"IPv6 in {ip} is not looked into", frame(ipv6() / SYN, **{proto: 41}), no_l4(version, 41))
        yield Case(f"{ip} TCP in a full frame", frame(SYN / Raw(bytes(1440))), TCP4 if version == 4 else TCP6)
    yield Case("IPv4 ICMP echo request", ether4(ICMP()), PING4)
    yield Case("IPv4 ICMP host unreachable", ether4(ICMP(type=3, code=1)), replace(PING4, icmp=(3, 1)))
    yield Case("IPv6 ICMPv6 echo request", ether6(PING6_REQUEST), PING6)
    yield Case(
        "IPv6 neighbour solicitation", ether6(ICMPv6ND_NS(tgt=DESTINATION6)), replace(PING6, icmp=(135, 0))
    )
    yield Case(
        "IPv6 ICMPv6 of four bytes", ether6(Raw(b"\x80\x03\0\0"), nh=58), replace(PING6, icmp=(128, 3))
    )
    yield Case(
        "IPv4 with ICMPv6's number",
        ether4(Raw(b"\x80\x02\0\0"), proto=58),
        Expect("default", 4, 58, icmp=(128, 2)),
    )
    yield Case(
        "IPv6 with ICMP's number",
        ether6(Raw(b"\x08\x01" + bytes(6)), nh=1),
        Expect("default", 6, 1, icmp=(8, 1)),
    )
    yield Case("IPv4 IGMP", ether4(Raw(b"\x16\0\0\0\xe0\0\0\1"), proto=2), no_l4(4, 2))
    for kind in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS, MOBILITY):
        header = extension(kind, 6, 24)
        yield Case(
            f"IPv4 does not walk header {kind}", ether4(header + bytes(SYN), proto=kind), no_l4(4, kind)
        )


def links() -> Iterator[Case]:
    yield Case("ARP passes", bytes(ETHERNET / ARP_REQUEST), NOT_IP)
    yield Case("ARP's type and nothing more passes", bytes(ethernet(0x0806)), NOT_IP)
    yield Case("LLDP passes", bytes(ethernet(0x88CC) / Raw(b"\x02\x07\x04" + bytes(30))), NOT_IP)
    yield Case("EAPOL passes", bytes(ethernet(0x888E) / Raw(bytes(46))), NOT_IP)
    yield Case(
        "PPPoE is not looked into",
        bytes(ethernet(0x8864) / Raw(b"\x11\0\0\1\0\x30\0\x21") / ipv4() / SYN),
        NOT_IP,
    )
    yield Case(
        "MPLS is not looked into",
        bytes(ethernet(0x8847) / Raw(b"\0\1\1\x40") / ipv4() / SYN),
        NOT_IP,
    )
    yield Case("A frame of type 0 passes", bytes(ethernet(0)) + bytes(46), NOT_IP)
    yield Case("An 802.3 length frame with STP passes", bytes(LENGTH_FRAME / LLC() / STP()), NOT_IP)
    yield Case(
        "IPv4 behind LLC and SNAP is not looked into",
        bytes(LENGTH_FRAME / LLC() / SNAP(code=0x0800) / ipv4() / SYN),
        NOT_IP,
    )
    for tag in (0x8100, 0x88A8, 0x9100):
        yield Case(f"One {tag:#x} tag before IPv4", tagged([tag], 0x0800, ipv4() / SYN), TCP4)
        yield Case(f"One {tag:#x} tag before IPv6", tagged([tag], 0x86DD, ipv6() / QUERY), UDP6)
        yield Case(f"One {tag:#x} tag before ARP passes", tagged([tag], 0x0806, ARP_REQUEST), NOT_IP)
        for inner in (0x8100, 0x88A8, 0x9100):
            name = f"Tags {tag:#x} and {inner:#x}"
            yield Case(f"{name} before IPv4", tagged([tag, inner], 0x0800, ipv4() / QUERY), UDP4)
            yield Case(f"{name} before IPv6", tagged([tag, inner], 0x86DD, ipv6() / SYN), TCP6)
            yield Case(
                f"{name} and a third tag pass", tagged([tag, inner, 0x8100], 0x0800, ipv4() / SYN), NOT_IP
            )
    yield Case("A third tag that is cut passes", tagged([0x88A8, 0x8100, 0x8100], 0x0800, b"")[:22], NOT_IP)
    yield Case("Two tags before ARP pass", tagged([0x88A8, 0x8100], 0x0806, ARP_REQUEST), NOT_IP)
    yield Case("A tag of type 0x9200 is not known and passes", tagged([0x9200], 0x0800, ipv4() / SYN), NOT_IP)
    yield Case("A tag before an 802.3 length passes", tagged([0x8100], 46, Raw(bytes(46))), NOT_IP)
    yield Case("A tag before a version that is not its type's", tagged([0x8100], 0x0800, ipv6() / SYN), BAD4)
    yield Case(
        "A scapy Dot1Q tag with priority 7 and id 4095",
        bytes(ETHERNET / Dot1Q(prio=7, vlan=4095) / ipv4() / SYN),
        TCP4,
    )


def tagged(tags: list[int], ethertype: int, payload: Packet | bytes) -> bytes:
    types = [*tags, ethertype]
    inside = b"".join(struct.pack("!HH", 100 + i, after) for i, after in enumerate(types[1:]))
    return bytes(ethernet(types[0]) / Raw(inside + bytes(payload)))


def ipv4_headers() -> Iterator[Case]:
    for words in range(11):
        options = [IPOption_NOP()] * (4 * words)
        yield Case(
            f"TCP ports are read after an IPv4 header of ihl {5 + words}", ether4(SYN, options=options), TCP4
        )
    yield Case("ICMP type is read after IPv4 options", ether4(ICMP(), options=[IPOption_NOP()] * 40), PING4)
    for ihl in range(5):
        yield Case(f"IPv4 ihl {ihl} is too small", ether4(SYN, ihl=ihl), BAD4)
    yield Case("IPv4 ihl 15 in a packet of 40 bytes", ether4(SYN, ihl=15), BAD4)
    yield Case("IPv4 ihl beyond the total length but within the frame", ether4(SYN, ihl=6, len=22), BAD4)
    yield Case("IPv4 ihl 11 that ends past the frame", ether4(SYN, ihl=11, len=40), BAD4)
    yield Case("IPv4 ihl 10 that leaves no byte for TCP", ether4(SYN, ihl=10), bad_l4(4, 6))
    for length in (0, 1, 19):
        yield Case(f"IPv4 total length {length} is below the header", ether4(SYN, len=length), BAD4)
    yield Case("IPv4 total length one byte beyond the frame", ether4(SYN, len=41), BAD4)
    yield Case("IPv4 total length 65535", ether4(SYN, len=65535), BAD4)
    for version in (0, 3, 5, 6, 15):
        yield Case(f"Version {version} under IPv4's type", ether4(SYN, version=version), BAD4)
    yield Case("IPv4's type and no byte more", ether4(SYN)[:14], BAD4)
    yield Case("IPv4 of TTL 0 and a wrong checksum is not malformed", ether4(SYN, ttl=0, chksum=1), TCP4)


def ipv4_fragments() -> Iterator[Case]:
    later_tcp = no_l4(4, 6, fragment=True)
    first_tcp = replace(TCP4, fragment=True)
    yield Case("A first IPv4 fragment has ports", ether4(SYN / Raw(bytes(4)), flags="MF"), first_tcp)
    yield Case(
        "A first IPv4 UDP fragment whose UDP length is of the whole",
        ether4(UDP(sport=40001, dport=53, len=3000) / Raw(bytes(64)), flags="MF"),
        replace(UDP4, fragment=True),
    )
    yield Case(
        "A first IPv4 ICMP fragment has a type",
        ether4(ICMP() / Raw(bytes(64)), flags="MF"),
        replace(PING4, fragment=True),
    )
    yield Case(
        "A first IPv4 fragment after options",
        ether4(SYN, flags="MF", options=[IPOption_NOP()] * 8),
        first_tcp,
    )
    yield Case(
        "A first IPv4 fragment of ESP",
        ether4(Raw(b"12345678"), flags="MF", proto=50),
        no_l4(4, 50, fragment=True),
    )
    for offset in (1, 185, 0x1000, 0x1FFF):
        yield Case(
            f"A middle IPv4 fragment at {offset} that looks like TCP",
            ether4(SYN, flags="MF", frag=offset),
            later_tcp,
        )
        yield Case(
            f"A last IPv4 fragment at {offset} that looks like TCP", ether4(SYN, frag=offset), later_tcp
        )
    yield Case(
        "A later IPv4 fragment after options", ether4(SYN, frag=9, options=[IPOption_NOP()] * 4), later_tcp
    )
    yield Case("A last IPv4 fragment of one byte", ether4(Raw(b"x"), frag=185, proto=6), later_tcp)
    yield Case(
        "A last IPv4 fragment of one byte, padded",
        padded(ether4(Raw(b"x"), frag=185, proto=17)),
        no_l4(4, 17, fragment=True),
    )
    yield Case("A last IPv4 fragment without data", ether4(b"", frag=185, proto=6), later_tcp)
    yield Case(
        "A last IPv4 ICMP fragment of three bytes",
        ether4(Raw(b"\x08\0\0"), frag=185, proto=1),
        no_l4(4, 1, fragment=True),
    )
    yield Case(
        "A later IPv4 fragment behind a tag", tagged([0x8100], 0x0800, ipv4(frag=185) / SYN), later_tcp
    )
    yield Case("IPv4 with don't-fragment is no fragment", ether4(SYN, flags="DF"), TCP4)
    yield Case("IPv4 with the reserved flag is no fragment", ether4(SYN, flags="evil"), TCP4)
    yield Case(
        "IPv4 with don't-fragment and more-fragments is a fragment", ether4(SYN, flags="DF+MF"), first_tcp
    )
    yield Case(
        "A first IPv4 fragment with 8 bytes of TCP",
        ether4(bytes(SYN)[:8], flags="MF", proto=6),
        bad_first(4, 6),
    )
    yield Case(
        "A first IPv4 fragment that ends within TCP's options",
        ether4(
            bytes(TCP(sport=40000, dport=22, dataofs=8, options=[("NOP", None)] * 12))[:24],
            flags="MF",
            proto=6,
        ),
        bad_first(4, 6),
    )
    yield Case("A first IPv4 fragment without data", ether4(b"", flags="MF", proto=17), bad_first(4, 17))
    yield Case(
        "A first IPv4 fragment whose UDP header would need the padding",
        padded(ether4(b"\x9c\x41\0\x35", flags="MF", proto=17)),
        bad_first(4, 17),
    )
    yield Case(
        "A first IPv4 fragment with a UDP length of 7",
        ether4(UDP(sport=1, dport=2, len=7), flags="MF"),
        bad_first(4, 17),
    )
    yield Case(
        "A later IPv4 fragment whose total length is beyond the frame", ether4(SYN, frag=185, len=41), BAD4
    )


def ipv6_headers() -> Iterator[Case]:
    for version in (0, 4, 5, 7, 15):
        yield Case(f"Version {version} under IPv6's type", ether6(SYN, version=version), BAD6)
    yield Case("IPv6's type and no byte more", ether6(SYN)[:14], BAD6)
    yield Case("IPv6 payload length one byte beyond the frame", ether6(SYN, plen=21), BAD6)
    yield Case("IPv6 payload length 65535", ether6(SYN, plen=65535), BAD6)
    yield Case("IPv6 payload length 0 before TCP means no TCP", ether6(SYN, plen=0), bad_l4(6, 6))
    yield Case("IPv6 payload length 0 before UDP means no UDP", ether6(QUERY, plen=0), bad_l4(6, 17))
    yield Case(
        "IPv6 payload length 0 before destination options",
        ether6(IPv6ExtHdrDestOpt() / SYN, plen=0),
        bad_extension(60),
    )
    yield Case("IPv6 without next header", ether6(b"", nh=59), no_l4(6, 59))
    yield Case("IPv6 without next header but with bytes", ether6(Raw(bytes(SYN)), nh=59), no_l4(6, 59))
    jumbo = IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=28)])
    yield Case("A jumbogram reaches to the frame's end", ether6(jumbo / SYN, plen=0), TCP6)
    yield Case(
        "A jumbogram's UDP length is 0", ether6(jumbo / UDP(sport=40001, dport=53, len=0), plen=0), UDP6
    )
    yield Case(
        "A jumbogram that ends before its hop-by-hop header", ether6(b"", nh=0, plen=0), bad_extension(0)
    )
    yield Case("A jumbogram that ends within TCP", ether6(jumbo / SYN, plen=0)[:-1], bad_l4(6, 6))


def ipv6_extensions() -> Iterator[Case]:
    yield Case("TCP behind hop-by-hop options", ether6(IPv6ExtHdrHopByHop() / SYN), TCP6)
    yield Case("TCP behind a routing header", ether6(IPv6ExtHdrRouting(addresses=[DESTINATION6]) / SYN), TCP6)
    yield Case("TCP behind destination options", ether6(IPv6ExtHdrDestOpt() / SYN), TCP6)
    yield Case(
        "TCP behind AH, whose length counts words",
        ether6(AH(nh=6, payloadlen=4, spi=1, seq=1, icv=b"\xaa" * 12) / SYN),
        TCP6,
    )
    yield Case(
        "TCP behind AH of the smallest length", ether6(b"\x06\0\0\0\0\0\0\1" + bytes(SYN), nh=51), TCP6
    )
    yield Case(
        "TCP behind AH of 12 bytes, not a multiple of 8",
        ether6(b"\x06\1" + bytes(10) + bytes(SYN), nh=51),
        TCP6,
    )
    yield Case("TCP behind a mobility header", chain([MOBILITY], 6, SYN), TCP6)
    yield Case("Hop-by-hop options are walked wherever they stand", chain([60, 0], 6, SYN), TCP6)
    for length in (16, 64, 512, 1024):
        yield Case(
            f"UDP behind destination options of {length} bytes",
            ether6(extension(60, 17, length) + bytes(QUERY), nh=60),
            UDP6,
        )
    yield Case("UDP behind AH of 1028 bytes", ether6(extension(51, 17, 1028) + bytes(QUERY), nh=51), UDP6)
    for count in range(2, 11):
        yield Case(f"TCP behind {count} extension headers", chain([60] * count, 6, SYN), TCP6)
    yield Case(
        "UDP behind ten headers of every kind",
        chain([0, 60, 43, 44, 51, 135, 60, 51, 43, 60], 17, QUERY),
        UDP6,
    )
    yield Case("ICMPv6 behind hop-by-hop and destination options", chain([0, 60], 58, PING6_REQUEST), PING6)
    yield Case("ESP behind ten headers", chain([60] * 10, 50, bytes(24)), no_l4(6, 50))
    yield Case("No next header behind ten headers", chain([60] * 10, 59, b""), no_l4(6, 59))
    for last in (0, 43, 44, 51, 60, 135):
        yield Case(
            f"An eleventh extension header, {last}", chain([60] * 10 + [last], 6, SYN), bad_extension(last)
        )
        yield Case(
            f"An extension header {last} of no byte",
            ether6(b"", nh=last, plen=0 if last else None),
            bad_extension(last),
        )
        yield Case(
            f"An extension header {last} of seven bytes", ether6(bytes(7), nh=last), bad_extension(last)
        )
    for kind in (0, 43, 51, 60, 135):
        cut = ether6(b"\x06\xff" + bytes(SYN), nh=kind)
        yield Case(f"An extension header {kind} whose length is 255", cut, bad_extension(kind))
        yield Case(
            f"A second extension header {kind} that ends in the padding",
            ether6(extension(60, kind) + b"\x06\x01" + bytes(6), nh=60) + bytes(SYN),
            bad_extension(kind),
        )
    yield Case(
        "A TCP header that does not fit behind an extension header",
        chain([60], 6, bytes(SYN)[:19]),
        bad_l4(6, 6),
    )
    yield Case(
        "Unknown header 140 is a protocol, not walked",
        ether6(extension(60, 6) + bytes(SYN), nh=140),
        no_l4(6, 140),
    )


def ipv6_fragments() -> Iterator[Case]:
    first_udp, later_udp = replace(UDP6, fragment=True), no_l4(6, 17, fragment=True)
    yield Case("A first IPv6 fragment has ports", fragment6(17, QUERY, offset=0, more=1), first_udp)
    yield Case(
        "A first IPv6 ICMPv6 fragment has a type",
        fragment6(58, PING6_REQUEST, offset=0, more=1),
        replace(PING6, fragment=True),
    )
    for offset in (1, 180, 0x1000, 0x1FFF):
        yield Case(
            f"A middle IPv6 fragment at {offset} that looks like UDP",
            fragment6(17, QUERY, offset=offset, more=1),
            later_udp,
        )
        yield Case(
            f"A last IPv6 fragment at {offset} that looks like UDP",
            fragment6(17, QUERY, offset=offset, more=0),
            later_udp,
        )
    yield Case("A last IPv6 fragment of one byte", fragment6(17, b"x", offset=180, more=0), later_udp)
    yield Case("A last IPv6 fragment without data", fragment6(17, b"", offset=180, more=0), later_udp)
    yield Case(
        "A last IPv6 ICMPv6 fragment of three bytes",
        fragment6(58, b"\x80\0\0", offset=180, more=0),
        no_l4(6, 58, fragment=True),
    )
    for kind in (0, 43, 44, 51, 60, 135):
        yield Case(
            f"A later IPv6 fragment of header {kind} is not walked",
            fragment6(kind, extension(60, 6, 16) + bytes(SYN), offset=4, more=0),
            no_l4(6, kind, fragment=True),
        )
    yield Case("An atomic IPv6 fragment is a whole packet", fragment6(6, SYN, offset=0, more=0), TCP6)
    yield Case(
        "The fragment header's second byte is no length",
        ether6(b"\x06\xff\0\0\0\0\0\1" + bytes(SYN), nh=44),
        TCP6,
    )
    yield Case(
        "The fragment header's reserved bits make no fragment",
        ether6(b"\x06\0\0\x06\0\0\0\1" + bytes(SYN), nh=44),
        TCP6,
    )
    yield Case(
        "An atomic IPv6 fragment with short TCP is malformed L4",
        fragment6(6, bytes(SYN)[:10], offset=0, more=0),
        bad_l4(6, 6),
    )
    behind = IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=[DESTINATION6])
    for name, offset, more, expect in (
        ("first", 0, 1, first_udp),
        ("middle", 180, 1, later_udp),
        ("last", 180, 0, later_udp),
    ):
        header = IPv6ExtHdrFragment(nh=17, offset=offset, m=more)
        yield Case(
            f"A {name} IPv6 fragment behind extension headers", ether6(behind / header / QUERY), expect
        )
        yield Case(
            f"A {name} IPv6 fragment behind two tags",
            tagged([0x88A8, 0x8100], 0x86DD, ipv6() / header / QUERY),
            expect,
        )
    options = extension(60, 17) + bytes(QUERY)
    yield Case(
        "A first IPv6 fragment before destination options",
        fragment6(60, options, offset=0, more=1),
        first_udp,
    )
    yield Case(
        "An atomic IPv6 fragment before destination options", fragment6(60, options, offset=0, more=0), UDP6
    )
    yield Case(
        "A first IPv6 fragment that ends within destination options",
        fragment6(60, b"\x11\x01" + bytes(6), offset=0, more=1),
        bad_extension(60, fragment=True),
    )
    yield Case(
        "A first IPv6 fragment with 7 bytes of UDP",
        fragment6(17, bytes(QUERY)[:7], offset=0, more=1),
        bad_first(6, 17),
    )
    yield Case(
        "A first IPv6 fragment with 8 bytes of TCP",
        fragment6(6, bytes(SYN)[:8], offset=0, more=1),
        bad_first(6, 6),
    )
    yield Case("A first IPv6 fragment without data", fragment6(6, b"", offset=0, more=1), bad_first(6, 6))
    inner = [IPv6ExtHdrFragment(nh=17, offset=offset, m=more) / QUERY for offset, more in ((0, 0), (180, 0))]
    yield Case(
        "An atomic fragment within a first one stays a first",
        fragment6(44, inner[0], offset=0, more=1),
        first_udp,
    )
    yield Case(
        "A later fragment within a first one is a later", fragment6(44, inner[1], offset=0, more=1), later_udp
    )
    yield Case(
        "A later fragment within an atomic one is a later",
        fragment6(44, inner[1], offset=0, more=0),
        later_udp,
    )
    first_tenth = struct.pack("!BBHI", 17, 0, 1, 7) + bytes(QUERY)
    nine = b"".join([extension(60, 60)] * 8) + extension(60, 44)
    yield Case("A first IPv6 fragment as the tenth header", ether6(nine + first_tenth, nh=60), first_udp)


def transport() -> Iterator[Case]:
    for version, frame in ((4, ether4), (6, ether6)):
        ip, proto = f"IPv{version}", "proto" if version == 4 else "nh"
        tcp, udp = (TCP4, UDP4) if version == 4 else (TCP6, UDP6)
        for offset in range(5):
            yield Case(
                f"{ip} TCP data offset {offset} is too small",
                frame(TCP(sport=40000, dport=22, dataofs=offset) / Raw(bytes(40))),
                bad_l4(version, 6),
            )
        for offset in (6, 15):
            short, whole = offset * 4 - 21, offset * 4 - 20
            syn = TCP(sport=40000, dport=22, dataofs=offset, flags="S")
            yield Case(
                f"{ip} TCP data offset {offset}, one byte short",
                frame(syn / Raw(bytes(short))),
                bad_l4(version, 6),
            )
            yield Case(f"{ip} TCP data offset {offset} that just fits", frame(syn / Raw(bytes(whole))), tcp)
        for length in range(1, 8):
            yield Case(
                f"{ip} UDP length {length} is impossible",
                frame(UDP(sport=40001, dport=53, len=length) / Raw(b"data")),
                bad_l4(version, 17),
            )
        for length in (0, 8, 9, 65535):
            yield Case(
                f"{ip} UDP length {length} is not judged",
                frame(UDP(sport=40001, dport=53, len=length) / Raw(b"data")),
                udp,
            )
        for protocol, size in ((6, 20), (17, 8), (136, 8), (132, 12), (33, 12), (1, 8), (58, 4)):
            yield Case(
                f"{ip} protocol {protocol} without data",
                frame(b"", **{proto: protocol}),
                bad_l4(version, protocol),
            )
            yield Case(
                f"{ip} protocol {protocol}, one byte short",
                frame(b"\x50" * (size - 1), **{proto: protocol}),
                bad_l4(version, protocol),
            )
    for letters, names in (
        ("", ""),
        ("F", "fin"),
        ("S", "syn"),
        ("R", "rst"),
        ("P", "psh"),
        ("A", "ack"),
        ("U", "urg"),
        ("E", "ece"),
        ("C", "cwr"),
        ("SA", "syn ack"),
        ("FPU", "fin psh urg"),
        ("FSRPAUEC", "fin syn rst psh ack urg ece cwr"),
    ):
        yield Case(
            f"TCP flags are {names or 'none'}",
            ether4(TCP(sport=40000, dport=22, flags=letters)),
            replace(TCP4, tcp_flags=frozenset(names.split())),
        )


def padding() -> Iterator[Case]:
    """Ethernet pads short frames to 60 bytes; what lies past the IP length is nobody's header."""
    yield Case("TCP in a padded frame", padded(ether4(SYN)), TCP4)
    yield Case("ICMP in a padded frame", padded(ether4(ICMP())), PING4)
    yield Case("IPv6 with padding after TCP", ether6(SYN) + bytes(20), TCP6)
    for version, frame, size in ((4, ether4, 20), (6, ether6, 0)):
        length = "len" if version == 4 else "plen"
        for layer, protocol, minimum in ((SYN, 6, 20), (QUERY, 17, 8)):
            for present in range(minimum):
                yield Case(
                    f"IPv{version} protocol {protocol}: {present} bytes of its header within the IP length",
                    frame(layer, **{length: size + present}),
                    bad_l4(version, protocol),
                )
    yield Case(
        "TCP options that would need the padding",
        padded(ether4(TCP(sport=40000, dport=22, dataofs=6))),
        bad_l4(4, 6),
    )
    yield Case("ICMP of seven bytes, padded", padded(ether4(b"\x08" + bytes(6), proto=1)), bad_l4(4, 1))
    yield Case("ICMPv6 of three bytes, padded", ether6(b"\x80\0\0", nh=58) + bytes(20), bad_l4(6, 58))
    yield Case(
        "IPv6 extension header that would need the padding",
        ether6(b"\x06\0\0\0", nh=60) + bytes(40),
        bad_extension(60),
    )


def without_ethernet() -> Iterator[Case]:
    for name, packet, expect in (
        ("IPv4 TCP", ipv4() / SYN, TCP4),
        ("IPv4 UDP after options", ipv4(options=[IPOption_NOP()] * 12) / QUERY, UDP4),
        ("IPv4 ICMP", ipv4() / ICMP(), PING4),
        ("a later IPv4 fragment", ipv4(frag=185) / SYN, no_l4(4, 6, fragment=True)),
        ("a short first IPv4 fragment", ipv4(flags="MF", proto=6) / Raw(bytes(8)), bad_first(4, 6)),
        ("IPv4 whose total length is beyond the end", ipv4(len=41) / SYN, BAD4),
        ("IPv4 of ihl 4", ipv4(ihl=4) / SYN, BAD4),
        ("IPv4 of 20 bytes and protocol 253", ipv4(proto=253), no_l4(4, 253)),
        ("IPv6 TCP", ipv6() / SYN, TCP6),
        (
            "IPv6 UDP behind extension headers",
            ipv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / QUERY,
            UDP6,
        ),
        (
            "a later IPv6 fragment",
            ipv6() / IPv6ExtHdrFragment(nh=6, offset=9) / SYN,
            no_l4(6, 6, fragment=True),
        ),
        ("IPv6 whose payload length is beyond the end", ipv6(plen=21) / SYN, BAD6),
        ("no byte", Raw(b""), BAD_LINK),
    ):
        yield Case(f"Without Ethernet: {name}", bytes(packet), expect, link="ip")
    for version in (0, 1, 2, 3, 5, 7, 8, 15):
        frame = bytes(ipv4(version=version) / SYN)
        yield Case(f"Without Ethernet: version {version}", frame, BAD_LINK, link="ip")
    ethernet = ether4(SYN)  # its first byte is 0x02: version 0
    yield Case("Without Ethernet: an Ethernet frame is no IP", ethernet, BAD_LINK, link="ip")


# --- every packet cut at every byte of its headers ---------------------------------------------------------

Ends = list[tuple[int, Expect]]  # a header's end in the frame, and what a frame is that ends before it


def cuts() -> Iterator[Case]:
    options = [IPOption_NOP()] * 8
    tcp_options = TCP(sport=40000, dport=22, options=[("NOP", None)] * 12)
    all_kinds = (
        extension(0, 60)
        + extension(60, 43, 16)
        + extension(43, 51, 24)
        + extension(51, 135, 24)
        + extension(135, 6, 16)
    )
    kinds6 = ETHERNET / ipv6(nh=0) / Raw(all_kinds + bytes(SYN))
    first6 = IPv6ExtHdrFragment(nh=17, offset=0, m=1) / QUERY
    qinq6 = tagged([0x88A8, 0x8100], 0x86DD, ipv6() / QUERY)
    yield from cut_everywhere("IPv4 TCP", ETHERNET / ipv4() / SYN, 14, [(34, BAD4), (54, bad_l4(4, 6))])
    yield from cut_everywhere(
        "IPv4 TCP with options", ETHERNET / ipv4() / tcp_options, 14, [(34, BAD4), (66, bad_l4(4, 6))]
    )
    yield from cut_everywhere(
        "IPv4 options, UDP", ETHERNET / ipv4(options=options) / QUERY, 14, [(42, BAD4), (50, bad_l4(4, 17))]
    )
    yield from cut_everywhere(
        "A first IPv4 fragment", ETHERNET / ipv4(flags="MF") / SYN, 14, [(34, BAD4), (54, bad_first(4, 6))]
    )
    yield from cut_everywhere(
        "A tag, IPv4 ICMP",
        ETHERNET / Dot1Q(vlan=5) / ipv4() / ICMP(),
        18,
        [(18, BAD_LINK), (38, BAD4), (46, bad_l4(4, 1))],
    )
    yield from cut_everywhere(
        "Two tags, IPv6 UDP", Raw(qinq6), 22, [(22, BAD_LINK), (62, BAD6), (70, bad_l4(6, 17))]
    )
    yield from cut_everywhere("IPv6 TCP", ETHERNET / ipv6() / SYN, 14, [(54, BAD6), (74, bad_l4(6, 6))])
    yield from cut_everywhere(
        "IPv6 ICMPv6", ETHERNET / ipv6() / PING6_REQUEST, 14, [(54, BAD6), (58, bad_l4(6, 58))]
    )
    yield from cut_everywhere(
        "A first IPv6 fragment",
        ETHERNET / ipv6() / first6,
        14,
        [(54, BAD6), (62, bad_extension(44)), (70, bad_first(6, 17))],
    )
    yield from cut_everywhere(
        "IPv6 with five kinds of extension header, TCP",
        kinds6,
        14,
        [
            (54, BAD6),
            (62, bad_extension(0)),
            (78, bad_extension(60)),
            (102, bad_extension(43)),
            (126, bad_extension(51)),
            (142, bad_extension(135)),
            (162, bad_l4(6, 6)),
        ],
    )
    yield from cut_everywhere(
        "Without Ethernet: IPv4 UDP",
        ipv4() / QUERY,
        0,
        [(1, BAD_LINK), (20, BAD4), (28, bad_l4(4, 17))],
        "ip",
    )
    yield from cut_everywhere(
        "Without Ethernet: IPv6 TCP", ipv6() / SYN, 0, [(1, BAD_LINK), (40, BAD6), (60, bad_l4(6, 6))], "ip"
    )


def cut_everywhere(
    name: str, packet: Packet, ip_start: int, ends: Ends, link: str = "ethernet"
) -> Iterator[Case]:
    """Each cut twice: with the IP length that was (it says more than there is), and with one that agrees."""
    whole = bytes(packet)
    bad_ip = BAD4 if whole[ip_start] >> 4 == 4 else BAD6
    for size in range(14 if link == "ethernet" else 0, ends[-1][0]):
        expect = next(expect for end, expect in ends if size < end)
        yield Case(
            f"{name}, cut to {size} bytes", whole[:size], expect if expect == BAD_LINK else bad_ip, link
        )
        mended = with_ip_length(whole[:size], ip_start)
        if mended != whole[:size]:
            yield Case(f"{name}, cut to {size} bytes with an IP length that agrees", mended, expect, link)


def with_ip_length(frame: bytes, ip_start: int) -> bytes:
    """`frame` with its IPv4 total length or IPv6 payload length made to end where the frame does."""
    data = bytearray(frame)
    available = len(data) - ip_start
    if available >= 20 and data[ip_start] >> 4 == 4:
        struct.pack_into("!H", data, ip_start + 2, available)
    if available >= 40 and data[ip_start] >> 4 == 6:
        struct.pack_into("!H", data, ip_start + 4, available - 40)
    return bytes(data)


CASES: list[Case] = [
    *plain(),
    *links(),
    *ipv4_headers(),
    *ipv4_fragments(),
    *ipv6_headers(),
    *ipv6_extensions(),
    *ipv6_fragments(),
    *transport(),
    *padding(),
    *without_ethernet(),
    *cuts(),
]
