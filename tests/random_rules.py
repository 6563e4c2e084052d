"""Seeded rules and frames for the property tests, drawn from one small pool so that they really collide.

Every rule is valid for the API; every frame is plain bytes, often valid and sometimes broken on purpose. The
same `random.Random` state gives the same rules and frames. No verdict is computed here.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

V4_ADDRESSES = (
    "192.0.2.1", "192.0.2.2", "192.0.2.130", "192.0.3.1", "198.51.100.7", "10.0.0.1", "0.0.0.0",
    "255.255.255.255",
)  # fmt: skip
V6_ADDRESSES = (
    "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "2001:db8:8000::1", "fe80::1", "ff02::1", "::", "::1",
)  # fmt: skip
ADDRESSES = {4: V4_ADDRESSES, 6: V6_ADDRESSES}
PREFIX_LENGTHS = {
    4: (0, 1, 8, 15, 16, 17, 23, 24, 25, 30, 31),
    6: (0, 1, 16, 31, 32, 33, 48, 63, 64, 65, 126, 127),
}
PORTS = (0, 22, 53, 80, 443, 8000, 8050, 65535)
PORT_RANGES = ("0-65535", "1-1023", "22-53", "80-80", "8000-8100", "60000-65535")
PORT_PROTOCOLS: tuple[str | int, ...] = ("tcp", "udp", "udplite", "sctp", "dccp", 6, "17", 132)
OTHER_PROTOCOLS: tuple[str | int, ...] = ("gre", "esp", 47, "51", 59, "253", 0)
ICMP_PROTOCOLS: tuple[str | int, ...] = ("icmp", "icmpv6", 1, "58")
ICMP_TYPES = ("0", "3", "3/1", "3/3", "8", "8/0", "128", "128/0", "135", "255/255")
FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
PRIORITIES = (0, 10, 10, 999, 1000, 1000, 1000, 1000, 65535)
MATCHES = {
    "sources",
    "destinations",
    "protocols",
    "source_ports",
    "destination_ports",
    "icmp_types",
    "tcp_flags",
}
Rule = dict[str, Any]
T = TypeVar("T")


# --- rules -------------------------------------------------------------------------------------------------


def random_rules(
    rng: random.Random, count: int, interfaces: Sequence[str] = (), sets: Sequence[str] = ()
) -> list[Rule]:
    """`count` rules, oldest first, ids "r0" on; `interfaces` are the names and globs they may be bound to, `sets` the
    names of sets that may stand among their addresses."""
    return [
        with_sets(rng, {"id": f"r{number}", **random_rule(rng, interfaces)}, sets) for number in range(count)
    ]


def with_sets(rng: random.Random, rule: Rule, sets: Sequence[str]) -> Rule:
    """With a set in the place of an address or beside it, now and then."""
    if sets and rng.random() < 0.5:
        side = rng.choice([side for side in ("sources", "destinations") if side in rule] or ["sources"])
        named = [f"@{name}" for name in rng.sample(sets, rng.choice((1, 1, 2)))]
        present = rule.get(side, []) if rng.random() < 0.4 else []
        rule[side] = [*([present] if isinstance(present, str) else present), *named]
    return rule


def random_rule(rng: random.Random, interfaces: Sequence[str]) -> Rule:
    rule: Rule = {"action": rng.choice(("drop", "allow"))}
    rule["direction"] = rng.choice(("ingress", "egress", "both", "both"))
    if rng.random() < 0.7:
        rule["priority"] = rng.choice(PRIORITIES)
    if rng.random() < 0.05:
        rule["enabled"] = False
    if rng.random() < 0.15:
        rule["mode"] = "observe"
    if rng.random() < 0.4:  # one address or network and nothing else
        rule[rng.choice(("sources", "destinations"))] = prefix(rng)
        return rule
    for side in ("sources", "destinations"):
        if rng.random() < 0.3:
            rule[side] = distinct(prefix(rng) for _ in range(rng.randint(1, 4)))
    if interfaces and rng.random() < 0.2:
        rule["interfaces"] = rng.sample(interfaces, rng.randint(1, min(2, len(interfaces))))
    if rng.random() < 0.15:
        rule["family"] = rng.choice(("ipv4", "ipv6"))
    rule |= rng.choice((ports_and_flags, ports_and_flags, icmp_types, protocols_only, no_protocol))(rng)
    if MATCHES.isdisjoint(rule) and rng.random() < 0.9:  # a rule for every packet hides all behind it
        rule |= protocols_only(rng)
    return without_mixed_families(rule)


def no_protocol(_: random.Random) -> Rule:
    return {}


def without_mixed_families(rule: Rule) -> Rule:
    """Let `family` and both sides leave one family in common: no rule here is beyond every packet."""
    left = {4, 6} if "family" not in rule else {int(rule["family"][-1])}
    for side in ("sources", "destinations"):
        if side in rule:
            left &= {ip_network(element).version for element in rule[side]}
    if left:
        return rule
    return {field: value for field, value in rule.items() if field not in ("family", "destinations")}


def prefix(rng: random.Random) -> str:
    """A bare address or a network of any length, nested with the others, without host bits."""
    version = rng.choice((4, 6))
    address = rng.choice(ADDRESSES[version])
    bits = 32 if version == 4 else 128
    draw = rng.random()
    if draw < 0.3:
        return address
    length = rng.choice(PREFIX_LENGTHS[version]) if draw < 0.9 else rng.randint(0, bits)
    return str(ip_network(f"{address}/{length}", strict=False))


def ports_and_flags(rng: random.Random) -> Rule:
    rule: Rule = {}
    for side in rng.choice(
        (["source_ports"], ["destination_ports"], ["source_ports", "destination_ports"], [])
    ):
        rule[side] = distinct(port(rng) for _ in range(rng.randint(1, 3)))
    protocols = list_with(rng, PORT_PROTOCOLS) if rng.random() < 0.5 else []
    if not rule or rng.random() < 0.3:
        rule["tcp_flags"] = tcp_flags(rng)
        if protocols:
            protocols = distinct([*protocols, "tcp"])
    return rule | ({"protocols": protocols} if protocols else {})


def port(rng: random.Random) -> str | int:
    number = rng.choice(PORTS)
    return rng.choice((number, str(number), rng.choice(PORT_RANGES)))


def tcp_flags(rng: random.Random) -> dict[str, list[str]]:
    names = rng.sample(FLAGS, rng.randint(1, 3))
    first_unset = rng.randint(0, len(names))
    return {"set": names[:first_unset], "unset": names[first_unset:]}


def icmp_types(rng: random.Random) -> Rule:
    rule: Rule = {"icmp_types": rng.sample(ICMP_TYPES, rng.randint(1, 3))}
    if rng.random() < 0.5:
        rule["protocols"] = list_with(rng, ICMP_PROTOCOLS)
    return rule


def protocols_only(rng: random.Random) -> Rule:
    return {"protocols": list_with(rng, PORT_PROTOCOLS + ICMP_PROTOCOLS + OTHER_PROTOCOLS)}


def list_with(rng: random.Random, needed: Sequence[str | int]) -> list[str | int]:
    """One of `needed`, sometimes beside protocols of any kind."""
    others = PORT_PROTOCOLS + ICMP_PROTOCOLS + OTHER_PROTOCOLS
    return distinct([rng.choice(needed), *rng.sample(others, rng.choice((0, 0, 1, 2)))])


def distinct(elements: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(elements))


# --- frames ------------------------------------------------------------------------------------------------

SHORTEST_FRAME = 14  # an Ethernet header, and the least that the kernel's test run takes of any link
MACS = bytes.fromhex("020000000002020000000001")
PROTOCOL_NUMBERS = (
    *[6] * 8,
    *[17] * 6,
    *[1] * 4,
    *[58] * 4,
    132,
    132,
    33,
    33,
    136,
    136,
    47,
    50,
    51,
    59,
    253,
    0,
)
EXTENSION_KINDS = (0, 43, 60, 51, 135, 44)
EXTENSION_COUNTS = (1, 1, 1, 1, 2, 2, 2, 3, 4, 8, 9, 10, 11)


def random_frame(rng: random.Random, link: str = "ethernet") -> bytes:
    """A frame of at least 14 bytes; `link` "ip" starts at the IP header."""
    version = rng.choice((4, 6))
    frame = random_ipv4(rng) if version == 4 else random_ipv6(rng)
    headers = len(frame)
    if link == "ethernet":
        frame = ethernet_header(rng, 0x0800 if version == 4 else 0x86DD) + frame
    if rng.random() < 0.2:
        frame += b"\x00" * max(60 - len(frame), rng.choice((0, 0, 4)))  # padding
    if rng.random() < 0.08:
        frame = frame[: rng.randint(SHORTEST_FRAME, max(SHORTEST_FRAME, len(frame)))]
    if rng.random() < 0.08:
        frame = mutated(rng, frame, start=len(MACS) if link == "ethernet" else 0, headers=headers)
    return frame.ljust(SHORTEST_FRAME, b"\x00")


def ethernet_header(rng: random.Random, ethertype: int) -> bytes:
    if rng.random() < 0.03:
        ethertype = rng.choice((0x0806, 0x88CC, 46, 0x8847, 0x0800, 0x86DD))  # sometimes the other IP version
    tag_count = rng.choices((0, 1, 2, 3), weights=(70, 15, 12, 3))[0]
    types = [rng.choice((0x8100, 0x88A8, 0x9100)) for _ in range(tag_count)] + [ethertype]
    tags = b"".join(struct.pack("!HH", rng.randrange(65536), after) for after in types[1:])
    return MACS + struct.pack("!H", types[0]) + tags


def random_ipv4(rng: random.Random) -> bytes:
    protocol = rng.choice(PROTOCOL_NUMBERS)
    payload = transport(rng, protocol)
    options = rng.randbytes(4 * rng.choice((0, 0, 0, 0, 1, 2, 5, 10)))
    header_length, total_length = 20 + len(options), 20 + len(options) + len(payload)
    ihl = header_length // 4 if rng.random() < 0.97 else rng.randrange(16)
    total_length = wrong_sometimes(rng, total_length)
    version = 4 if rng.random() < 0.99 else rng.randrange(16)
    more, offset = fragment_fields(rng)
    flags = rng.choice((0, 0x4000)) | more * 0x2000 | offset
    source, destination = addresses(rng, 4)
    start = struct.pack("!BBHHHBBH", version << 4 | ihl, 0, total_length, 1, flags, 64, protocol, 0)
    return start + source + destination + options + payload


def random_ipv6(rng: random.Random) -> bytes:
    protocol = rng.choice(PROTOCOL_NUMBERS)
    count = rng.choice(EXTENSION_COUNTS) if rng.random() < 0.4 else 0
    kinds = [rng.choice(EXTENSION_KINDS) for _ in range(count)]
    following = [*kinds, protocol]
    headers = [extension(rng, kind, after) for kind, after in zip(kinds, following[1:], strict=True)]
    payload = b"".join(headers) + transport(rng, protocol)
    payload_length = 0 if rng.random() < 0.02 else wrong_sometimes(rng, len(payload))
    version = 6 if rng.random() < 0.99 else rng.randrange(16)
    source, destination = addresses(rng, 6)
    return (
        struct.pack("!IHBB", version << 28, payload_length, following[0], 64) + source + destination + payload
    )


def extension(rng: random.Random, kind: int, next_header: int) -> bytes:
    if kind == 44:
        more, offset = fragment_fields(rng)
        return struct.pack(
            "!BBHI", next_header, rng.randrange(256), offset << 3 | rng.randrange(4) << 1 | more, 1
        )
    units = rng.choice((0, 0, 0, 1, 2, 4))
    length = (units + 2) * 4 if kind == 51 else (units + 1) * 8
    if rng.random() < 0.02:
        units = 255
    return bytes([next_header, units]) + rng.randbytes(length - 2)


def fragment_fields(rng: random.Random) -> tuple[int, int]:
    """More-fragments and the offset: mostly a whole packet, else a first, a middle or a last fragment."""
    offset = rng.choice((1, 185, 0x1000, 0x1FFF))
    return rng.choices(((0, 0), (1, 0), (1, offset), (0, offset)), weights=(82, 8, 4, 6))[0]


def addresses(rng: random.Random, version: int) -> tuple[bytes, bytes]:
    """Source and destination; one in five has its last byte drawn anew, to meet networks but no host rule."""
    pair = []
    for _ in range(2):
        packed = ip_address(rng.choice(ADDRESSES[version])).packed
        pair.append(packed if rng.random() < 0.8 else packed[:-1] + rng.randbytes(1))
    return pair[0], pair[1]


def transport(rng: random.Random, protocol: int) -> bytes:
    """A transport header with some data behind it; sometimes cut, sometimes with impossible lengths."""
    ports = struct.pack("!HH", near_port(rng), near_port(rng))
    if protocol == 6:
        offset = rng.choice((5, 5, 5, 5, 5, 6, 8, 15)) if rng.random() < 0.95 else rng.randrange(16)
        header = (
            ports + bytes(8) + bytes([offset << 4, random_flags(rng)]) + bytes(6 + max(0, offset - 5) * 4)
        )
    elif protocol == 17:
        header = ports + struct.pack("!HH", rng.choice((8, 8, 8, 8, 0, 30, 65535, rng.randrange(8))), 0)
    elif protocol in (1, 58):
        icmp_type, _, code = rng.choice(ICMP_TYPES).partition("/")
        header = bytes([int(icmp_type), int(code) if code else rng.randrange(4)]) + bytes(
            rng.choice((2, 6, 6, 6))
        )
    else:
        header = ports + bytes(8)
    if rng.random() < 0.05:
        return header[: rng.randrange(len(header))]
    return header + bytes(rng.choice((0, 0, 1, 16)))


def near_port(rng: random.Random) -> int:
    """A port of the pool, or one beside it where ranges end."""
    return (rng.choice((*PORTS, 1, 1023, 8100, 60000)) + rng.choice((0, 0, 0, 1, -1))) % 65536


def random_flags(rng: random.Random) -> int:
    return rng.choice((0x02, 0x12, 0x10, 0x04, 0x18, 0x00, 0xFF, rng.randrange(256)))


def wrong_sometimes(rng: random.Random, length: int) -> int:
    if rng.random() < 0.95:
        return length
    return rng.choice((0, max(0, length - 1), length + 1, rng.randrange(length + 1), 65535))


def mutated(rng: random.Random, frame: bytes, *, start: int, headers: int) -> bytes:
    """`frame` with one to three bytes from `start` on drawn anew, within its headers."""
    data = bytearray(frame)
    end = min(len(data), start + headers)
    for _ in range(rng.randint(1, 3)):
        if start < end:
            data[rng.randrange(start, end)] = rng.randrange(256)
    return bytes(data)
