"""A slow reader of the compiled image: what bpf/decide.h does with it, in Python, for one packet at a time.

It owns its own reading of the tables (rows and buckets written down again here, checked against layout.h by
the tests of that) and takes packets as tests.oracle parses them. It compiles nothing.
"""

from __future__ import annotations

import numpy as np

from firewall.addresses import AddressTables
from firewall.datapath import Entry, Key
from firewall.policy import HookPolicy, Policy
from firewall.policy_addresses import Intervals
from tests.oracle import ICMP, ICMPV6, TCP, TCP_FLAGS, Packet

FAMILY_OF = {4: 0, 6: 1}
BITS = {4: 32, 6: 128}


def policy_rule(policy: Policy, hook: int, packet: Packet, ifindex: int) -> tuple[int, int, int] | None:
    """(rank, slot, handle) of the first rule whose bit all six vectors have, None for no such rule."""
    image = policy.hooks[hook]
    protocol = protocol_vector(image, packet)
    numbers = [
        protocol,
        protocol if packet.ports is None else int(image.port[packet.ports[0], 0]),
        protocol if packet.ports is None else int(image.port[packet.ports[1], 1]),
        image.interfaces.get(ifindex, image.any_interface) if image.uses_interfaces else protocol,
    ]
    best: tuple[int, int, int, int] | None = None
    enough = image.enforcing
    vectors = [policy.vector(number) for number in numbers]
    vectors += [policy.address_vector(address_class(image, packet, side)) for side in (0, 1)]
    for word in range(image.words):
        both = ~0
        for vector in vectors:
            both &= int(vector[word]) if len(vector) else 0
        if both and word < enough:
            found = image.rules[word * 64 + (both & -both).bit_length() - 1]
            this = tuple(int(found[field]) for field in ("order", "rank", "slot", "handle"))
            best = min(best or this, this)  # type: ignore[assignment]
            enough = min(enough, int(found["enough"]))
    return best and best[1:]


def protocol_vector(image: HookPolicy, packet: Packet) -> int:
    protocol = packet.protocol
    assert protocol is not None
    if packet.icmp is not None:
        assert protocol in (ICMP, ICMPV6)
        return int(image.icmp[(protocol == ICMPV6) * 65536 + packet.icmp[0] * 256 + packet.icmp[1]])
    if packet.tcp_flags is not None:
        assert protocol == TCP
        return int(image.protocol[256 + sum(TCP_FLAGS[name] for name in packet.tcp_flags)])
    return int(image.protocol[protocol if packet.ports is None else 512 + protocol])


def address_class(image: HookPolicy, packet: Packet, side: int) -> int:
    """Of the last interval that does not start beyond the address."""
    assert packet.version is not None
    address = int((packet.destination if side else packet.source) or 0)
    intervals = image.intervals(packet.version)[side]
    before = sum(start <= address for start in starts_of(intervals))
    return int(intervals.classes[before - 1])


def starts_of(intervals: Intervals) -> list[int]:
    """As numbers."""
    if intervals.starts.dtype == np.uint64:
        return [int(start) for start in intervals.starts]
    raw = intervals.starts.tobytes()
    return [int.from_bytes(raw[at : at + 16], "big") for at in range(0, len(raw), 16)]


def bucket6(address: int, bits: int) -> int:
    return (address >> 96) * 0x9E3779B1 % 2**32 >> (32 - bits)


def set_bits(word: int) -> list[int]:
    return [bit for bit in range(word.bit_length()) if word >> bit & 1]


def address_entry(tables: AddressTables, hook: int, packet: Packet) -> Entry | None:
    """The best entry of all prefixes of the lengths that a list has, None for none."""
    assert packet.version is not None
    best: Entry | None = None
    for side, address in enumerate((packet.source, packet.destination)):
        scope = hook * 2 + side
        lengths = tables.occupancy.lengths4 if packet.version == 4 else tables.occupancy.lengths6
        for length in set_bits(lengths[scope]):
            spare = BITS[packet.version] - length
            key = Key(packet.version, scope, length, int(address or 0) >> spare << spare)
            entry = tables.winner(key)
            if entry is not None and (best is None or entry.rank < best.rank):
                best = entry
    return best


def verdict(
    policy: Policy, tables: AddressTables, hook: int, packet: Packet, ifindex: int
) -> tuple[int, int] | None:
    """(rank, handle) of the winner, None where no rule matches. The policy is asked as decide() asks it."""
    address = address_entry(tables, hook, packet)
    if address is not None and policy.hooks[hook].best_rank >= address.rank:
        return address.rank, address.handle
    found = policy_rule(policy, hook, packet, ifindex)
    if found is None or (address is not None and address.rank <= found[0]):
        return address and (address.rank, address.handle)
    return found[0], found[2]
