"""Policy rule sets in the shapes of ClassBench (Taylor and Turner, INFOCOM 2005), and packets for and against them.

Owns the rules as columns of numbers and a naive way to judge packets by them, which the datapath is checked
against. The shapes follow the published seeds acl, fw and ipc in what costs a classifier: nesting of prefixes,
wildcards, and the mixture of exact ports, ranges and any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.address_lists import Random, masks4
from benchmarks.driver import Frames
from benchmarks.frames import ICMP, TCP, UDP, ipv4_frames
from firewall.address import format_address

Column = npt.NDArray[np.int64]
ANY_PROTOCOL = -1
FIRST_PRIORITY = 2000  # after the address lists', so that a listed source needs no policy
_MATRIX_CELLS = 1 << 24


@dataclass(frozen=True)
class Shape:
    """Shares of rules: without a source or destination, and by kind of port; protocols with their shares."""

    any_source: float
    any_destination: float
    source_ports: tuple[float, float, float]  # any, exact, range
    destination_ports: tuple[float, float, float]
    protocols: dict[int, float]
    prefix_lengths: tuple[int, ...]


SHAPES = {
    "acl": Shape(
        any_source=0.05,
        any_destination=0.02,
        source_ports=(0.98, 0.01, 0.01),
        destination_ports=(0.15, 0.75, 0.10),
        protocols={TCP: 0.75, UDP: 0.18, ICMP: 0.02, ANY_PROTOCOL: 0.05},
        prefix_lengths=(16, 20, 22, 24, 24, 27, 28, 30, 32, 32),
    ),
    "fw": Shape(
        any_source=0.35,
        any_destination=0.25,
        source_ports=(0.75, 0.10, 0.15),
        destination_ports=(0.25, 0.45, 0.30),
        protocols={TCP: 0.60, UDP: 0.25, ICMP: 0.05, ANY_PROTOCOL: 0.10},
        prefix_lengths=(8, 12, 16, 20, 24, 24, 28, 32, 32),
    ),
    "ipc": Shape(
        any_source=0.10,
        any_destination=0.10,
        source_ports=(0.85, 0.10, 0.05),
        destination_ports=(0.35, 0.50, 0.15),
        protocols={TCP: 0.50, UDP: 0.30, ICMP: 0.08, ANY_PROTOCOL: 0.12},
        prefix_lengths=(12, 16, 18, 22, 24, 26, 28, 30, 32),
    ),
}


@dataclass(frozen=True)
class PolicySet:
    """Rules as columns, in winning order; the last one drops all TCP that no other rule matches."""

    sources: Column
    source_lengths: Column
    destinations: Column
    destination_lengths: Column
    protocols: Column
    source_ports: npt.NDArray[np.int64]  # (n, 2) first and last
    destination_ports: npt.NDArray[np.int64]
    drops: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.sources)

    def rule_fields(self) -> list[dict[str, object]]:
        """As the API takes them."""
        return [self._fields(at) for at in range(len(self))]

    def _fields(self, at: int) -> dict[str, object]:
        fields: dict[str, object] = {
            "id": f"policy-{at}",
            "action": "drop" if self.drops[at] else "allow",
            "priority": FIRST_PRIORITY + at,
        }
        for name, networks, lengths in (
            ("sources", self.sources, self.source_lengths),
            ("destinations", self.destinations, self.destination_lengths),
        ):
            if lengths[at]:
                fields[name] = [f"{format_address(4, int(networks[at]))}/{lengths[at]}"]
        if self.protocols[at] != ANY_PROTOCOL:
            fields["protocols"] = [int(self.protocols[at])]
        for name, ports in (
            ("source_ports", self.source_ports),
            ("destination_ports", self.destination_ports),
        ):
            first, last = ports[at].tolist()
            if (first, last) != (0, 65535):
                fields[name] = [f"{first}-{last}" if first != last else f"{first}"]
        return fields


@dataclass(frozen=True)
class Packets:
    """What the rules look at, a column each."""

    sources: Column
    destinations: Column
    protocols: Column
    source_ports: Column
    destination_ports: Column

    def __len__(self) -> int:
        return len(self.sources)

    def only(self, chosen: npt.NDArray[np.bool_]) -> Packets:
        return Packets(*(each[chosen] for each in vars(self).values()))

    def frames(self) -> Frames:
        addresses = self.sources.astype(np.uint32), self.destinations.astype(np.uint32)
        return ipv4_frames(*addresses, self.protocols, self.source_ports, self.destination_ports)


def policy_set(random: Random, shape: Shape, count: int) -> PolicySet:
    body = count - 1
    sources, source_lengths = _prefixes(random, shape, body, shape.any_source)
    destinations, destination_lengths = _prefixes(random, shape, body, shape.any_destination)
    # A rule without both addresses would match nearly everything and hide the rules after it.
    bare = (source_lengths == 0) & (destination_lengths == 0)
    sources[bare], source_lengths[bare] = _prefixes(random, shape, int(bare.sum()), 0.0)
    numbers, shares = list(shape.protocols), list(shape.protocols.values())
    protocols = random.choice(np.array(numbers), body, p=shares)
    has_ports = (protocols == TCP) | (protocols == UDP)
    source_ports = np.where(has_ports[:, None], _ports(random, shape.source_ports, body), (0, 65535))
    destination_ports = np.where(
        has_ports[:, None], _ports(random, shape.destination_ports, body), (0, 65535)
    )
    # Rules that ask for one address and nothing else would live in the address tables.
    alone = (protocols == ANY_PROTOCOL) & ((source_lengths == 0) | (destination_lengths == 0))
    protocols[alone] = UDP
    drops = random.random(body) < 0.5
    every_port = np.array([[0, 65535]])
    return PolicySet(
        np.append(sources, 0), np.append(source_lengths, 0),
        np.append(destinations, 0), np.append(destination_lengths, 0),
        np.append(protocols, TCP),
        np.vstack((source_ports, every_port)), np.vstack((destination_ports, every_port)),
        np.append(drops, True),
    )  # fmt: skip


def _prefixes(random: Random, shape: Shape, count: int, any_share: float) -> tuple[Column, Column]:
    """Nested: three of four lie in one of few networks, and many stand more than once."""
    lengths = random.choice(np.array(shape.prefix_lengths), count).astype(np.int64)
    pool = random.integers(1 << 24, 224 << 24, max(8, count // 64))
    distinct = random.integers(1 << 24, 224 << 24, max(8, count // 2))
    inside = random.random(len(distinct)) < 0.75
    around = pool[random.integers(0, len(pool), len(distinct))]
    distinct = np.where(inside, around & 0xFFFF0000 | distinct & 0xFFFF, distinct)
    networks = distinct[random.integers(0, len(distinct), count)] if count else np.zeros(0, np.int64)
    is_any = random.random(count) < any_share
    lengths[is_any] = 0
    return np.where(is_any, 0, networks & masks4(lengths.astype(np.uint8))).astype(np.int64), lengths


def _ports(random: Random, shares: tuple[float, float, float], count: int) -> npt.NDArray[np.int64]:
    """First and last; real sets name some hundred ports and some dozen ranges."""
    exact = np.unique(np.append(random.integers(1, 65536, 160), [22, 25, 53, 80, 123, 443, 3306, 8080]))
    firsts = random.integers(0, 60000, 40)
    ranges = np.column_stack((firsts, firsts + random.integers(1, 5000, 40)))
    ranges[:2] = (0, 1023), (1024, 65535)
    kind = random.choice(3, count, p=shares)
    ports = np.tile(np.array([0, 65535], np.int64), (count, 1))
    ports[kind == 1] = exact[random.integers(0, len(exact), int((kind == 1).sum()))][:, None]
    ports[kind == 2] = ranges[random.integers(0, len(ranges), int((kind == 2).sum()))]
    return ports


def _address_in(random: Random, networks: Column, lengths: Column) -> Column:
    host = random.integers(0, 1 << 32, len(networks)) & ~masks4(lengths.astype(np.uint8)).astype(np.int64)
    wild = random.integers(1 << 24, 224 << 24, len(networks))
    return np.where(lengths == 0, wild, networks | host & 0xFFFFFFFF).astype(np.int64)


def _port_in(random: Random, ports: npt.NDArray[np.int64]) -> Column:
    return np.asarray(random.integers(ports[:, 0], ports[:, 1] + 1), np.int64)


def _drawn(random: Random, policy: PolicySet, count: int, is_one_rule: bool) -> Packets:
    """Every field as some rule asks it: all of one rule, or each of another."""
    first = random.integers(0, len(policy), count)

    def at() -> Column:
        return first if is_one_rule else random.integers(0, len(policy), count)

    source, destination = at(), at()
    protocols = policy.protocols[at()]
    protocols = np.where(protocols == ANY_PROTOCOL, random.choice([TCP, UDP], count), protocols)
    is_icmp = protocols == ICMP
    packets = Packets(
        _address_in(random, policy.sources[source], policy.source_lengths[source]),
        _address_in(random, policy.destinations[destination], policy.destination_lengths[destination]),
        protocols,
        _port_in(random, policy.source_ports[at()]),
        _port_in(random, policy.destination_ports[at()]),
    )
    # An echo request carries 8 and 0 where ports would be; no rule of these sets asks an ICMP type.
    packets.source_ports[is_icmp] = 0
    return packets


def friendly(random: Random, policy: PolicySet, count: int) -> Packets:
    """Traffic that the rules were written for: each packet is one that a random rule asks."""
    return _drawn(random, policy, count, is_one_rule=True)


def adversarial(random: Random, policy: PolicySet, count: int, matches_last: bool) -> Packets:
    """Near misses: every field is one that some rule asks, together they match the last rule only, or none."""
    found: list[Packets] = []
    for _ in range(24):
        packets = _drawn(random, policy, count, is_one_rule=False)
        packets.protocols[:] = TCP if matches_last else UDP
        wanted = len(policy) - 1 if matches_last else len(policy)
        found.append(packets.only(first_match(policy, packets) == wanted))
        if sum(map(len, found)) >= count:
            break
    return Packets(
        *(
            np.concatenate(columns)[:count]
            for columns in zip(*(vars(each).values() for each in found), strict=True)
        )
    )


def first_match(policy: PolicySet, packets: Packets) -> Column:
    """The winning rule's number by trying every rule, len(policy) where none matches."""
    rows = max(1, _MATRIX_CELLS // max(1, len(policy)))
    parts = [np.arange(at, min(at + rows, len(packets))) for at in range(0, len(packets), rows)]
    return (
        np.concatenate([_first_match(policy, packets, part) for part in parts])
        if parts
        else np.zeros(0, np.int64)
    )


def _first_match(policy: PolicySet, packets: Packets, part: Column) -> Column:
    source = packets.sources[part, None] & masks4(policy.source_lengths.astype(np.uint8))
    matrix = source == policy.sources
    matrix &= (
        packets.destinations[part, None] & masks4(policy.destination_lengths.astype(np.uint8))
        == policy.destinations
    )
    protocols = packets.protocols[part, None]
    matrix &= (policy.protocols == ANY_PROTOCOL) | (policy.protocols == protocols)
    has_ports = (protocols == TCP) | (protocols == UDP)
    for ports, asked in (
        (packets.source_ports[part, None], policy.source_ports),
        (packets.destination_ports[part, None], policy.destination_ports),
    ):
        every = (asked[:, 0] == 0) & (asked[:, 1] == 65535)
        matrix &= every | (has_ports & (ports >= asked[:, 0]) & (ports <= asked[:, 1]))
    return np.where(matrix.any(axis=1), matrix.argmax(axis=1), len(policy))
