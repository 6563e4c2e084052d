"""The policy compiler: rules that are more than addresses, to bit vectors (datapath design, part 2).

Pure: takes rules, returns numpy arrays in the layout of bpf/layout.h, numbered from 0; the kernel side adds
the offsets of the generation that it writes them to. Bits stand in winning order, so the first set bit of
the AND of a packet's vectors is its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.layout import POLICY_RULE, RANK_NONE, C
from firewall.lengths import POLICY_BUCKET6_BITS, length_bit
from firewall.match import ICMP, ICMPV6, PORT_PROTOCOLS, TCP, PortRange
from firewall.rule import VERSIONS, Rule

Words = npt.NDArray[np.uint64]
_TCP_ROWS, _PORT_ROWS, _ROWS = C["PROTOCOL_ROW_TCP"], C["PROTOCOL_ROW_PORTS"], C["PROTOCOL_ROWS"]
_UNNAMED = -1  # stands for every protocol that no rule names
_BUCKETS4, _BUCKETS6 = C["BUCKET_COUNT"], C["POLICY_BUCKET6_COUNT"]


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A rule that is compiled: its handle for people and events, its slot for counters."""

    rule: Rule
    handle: int
    slot: int


@dataclass(frozen=True)
class HookPolicy:
    """One hook's image. Vector numbers index `Policy.vectors`.

    prefixes4/6: (side, address, length, vector); lengths4: (2, 65536); lengths6: (2, 4096, 2);
    protocol: (768,); port: (65536, 2); icmp: (131072,); interfaces: vector by ifindex; rules: by bit.
    """

    best_rank: int
    words: int
    uses_interfaces: bool
    any_interface: int
    any_address: tuple[int, int, int, int]
    short_lengths6: tuple[int, int]
    prefixes4: list[tuple[int, int, int, int]]
    prefixes6: list[tuple[int, int, int, int]]
    lengths4: npt.NDArray[np.uint64]
    lengths6: npt.NDArray[np.uint64]
    protocol: npt.NDArray[np.uint64]
    port: npt.NDArray[np.uint32]
    icmp: npt.NDArray[np.uint64]
    interfaces: dict[int, int]
    rules: npt.NDArray[np.void]


@dataclass(frozen=True)
class Policy:
    """Both hooks' images and the vectors that they share: (count, words)."""

    hooks: tuple[HookPolicy, HookPolicy]
    vectors: Words

    @property
    def prefix_count(self) -> int:
        """Entries that the larger of the two prefix tables needs."""
        return max(
            sum(len(each.prefixes4) for each in self.hooks), sum(len(each.prefixes6) for each in self.hooks)
        )


@dataclass
class _Pool:
    """Distinct vectors, numbered in order of appearance; number 0 matches nothing."""

    words: int
    vectors: list[bytes] = field(default_factory=list)
    numbers: dict[bytes, int] = field(default_factory=dict)

    def number(self, vector: Words) -> int:
        return self.number_of(vector.tobytes())

    def number_of(self, content: bytes) -> int:
        number = self.numbers.setdefault(content, len(self.vectors))
        if number == len(self.vectors):
            self.vectors.append(content)
        return number

    def numbers_of(self, rows: Words) -> list[int]:
        """Of the rows of a matrix."""
        content, size = rows.tobytes(), self.words * 8
        return [self.number_of(content[at : at + size]) for at in range(0, len(content), size)]


def compile_policy(rules: Iterable[PolicyRule], interfaces: Mapping[str, int], words: int) -> Policy:
    """`interfaces`: ifindex by name, what globs are matched with; `words`: of a vector in the kernel's maps."""
    pool = _Pool(words)
    pool.number(np.zeros(words, np.uint64))
    ordered = sorted(rules, key=lambda each: (each.rule.rank, each.handle))
    hooks = tuple(
        _compile_hook([each for each in ordered if hook in each.rule.hooks], interfaces, pool)
        for hook in range(C["HOOK_COUNT"])
    )
    vectors = np.frombuffer(b"".join(pool.vectors), np.uint64).reshape(-1, words)
    return Policy((hooks[0], hooks[1]), vectors)


def _compile_hook(compiled: Sequence[PolicyRule], interfaces: Mapping[str, int], pool: _Pool) -> HookPolicy:
    rules = [each.rule for each in compiled]
    bits = _Bits(len(rules), pool.words)
    table = np.zeros(len(rules), POLICY_RULE)
    table["rank"] = [rule.rank for rule in rules]
    table["slot"] = [each.slot for each in compiled]
    table["handle"] = [each.handle for each in compiled]
    by_side = [_address_lists(rules, bits, pool, side) for side in range(C["SIDE_COUNT"])]
    lists = [lists[version] for version in BITS for lists in by_side]
    protocol, icmp = _protocol_rows(rules, bits, pool)
    by_interface, any_interface = _interface_vectors(rules, interfaces, bits, pool)
    return HookPolicy(
        best_rank=rules[0].rank if rules else RANK_NONE,
        words=-(-len(rules) // 64),
        uses_interfaces=any(rule.interfaces for rule in rules),
        any_interface=any_interface,
        any_address=(lists[0].any, lists[1].any, lists[2].any, lists[3].any),
        short_lengths6=(lists[2].short_lengths, lists[3].short_lengths),
        prefixes4=[entry for each in lists[:2] for entry in each.entries],
        prefixes6=[entry for each in lists[2:] for entry in each.entries],
        lengths4=np.stack([each.lengths for each in lists[:2]]),
        lengths6=np.stack([each.lengths for each in lists[2:]]),
        protocol=protocol,
        port=np.stack([_port_rows(rules, side, bits, pool) for side in ("source", "destination")], axis=1),
        icmp=icmp,
        interfaces=by_interface,
        rules=table,
    )


@dataclass(frozen=True)
class _Bits:
    """Sets of rules, each rule by its bit, as vectors."""

    count: int
    words: int

    def of(self, members: Iterable[int]) -> Words:
        chosen = np.zeros(self.words * 64, np.bool_)
        chosen[list(members)] = True
        return np.packbits(chosen, bitorder="little").view(np.uint64)


@dataclass(frozen=True)
class _AddressList:
    any: int
    short_lengths: int
    entries: list[tuple[int, int, int, int]]
    lengths: npt.NDArray[np.uint64]


def _address_lists(rules: Sequence[Rule], bits: _Bits, pool: _Pool, side: int) -> dict[int, _AddressList]:
    """By IP version: every prefix that some rule names, with the vector of all rules whose prefixes cover it."""
    anywhere: dict[int, list[int]] = {version: [] for version in BITS}
    named: dict[int, dict[Prefix, list[int]]] = {version: {} for version in BITS}
    for bit, rule in enumerate(rules):
        asked = rule.destinations if side else rule.sources
        for version in VERSIONS[rule.family]:
            if not asked:
                anywhere[version].append(bit)
        for prefix in asked:
            if prefix.version in VERSIONS[rule.family]:
                named[prefix.version].setdefault(prefix, []).append(bit)
    return {
        version: _address_list(version, side, anywhere[version], named[version], bits, pool)
        for version in BITS
    }


def _address_list(
    version: int, side: int, anywhere: list[int], named: Mapping[Prefix, list[int]], bits: _Bits, pool: _Pool
) -> _AddressList:
    any_vector = bits.of(anywhere)
    prefixes = sorted(named)
    numbers = pool.numbers_of(_flatten(prefixes, named, any_vector))
    entries = [
        (side, each.address, each.length, number) for each, number in zip(prefixes, numbers, strict=True)
    ]
    lengths, short_lengths = _length_rows(version, prefixes)
    return _AddressList(pool.number(any_vector), short_lengths, entries, lengths)


def _flatten(prefixes: Sequence[Prefix], named: Mapping[Prefix, list[int]], any_vector: Words) -> Words:
    """A row a prefix: its own bits and those of every prefix around it. Sorted by address and then length, the
    prefixes around one are exactly those still open on a stack; rows are completed level by level."""
    around: list[int] = []
    parents, depths = [], []
    for number, prefix in enumerate(prefixes):
        while around and not prefixes[around[-1]].covers(prefix):
            around.pop()
        parents.append(around[-1] if around else -1)
        depths.append(len(around))
        around.append(number)
    rows = np.zeros((len(prefixes), len(any_vector)), np.uint64)
    members = [(number, bit) for number, prefix in enumerate(prefixes) for bit in named[prefix]]
    _set_bits(rows, members)
    parent_of, depth_of = np.array(parents, np.int64), np.array(depths, np.int64)
    for depth in range(max(depths, default=-1) + 1):
        level = np.flatnonzero(depth_of == depth)
        rows[level] |= rows[parent_of[level]] if depth else any_vector
    return rows


def _set_bits(rows: Words, members: Sequence[tuple[int, int]]) -> None:
    """`members`: row and bit."""
    if members:
        row, bit = np.array(members, np.int64).T
        values = np.left_shift(np.uint64(1), (bit & 63).astype(np.uint64))
        np.bitwise_or.at(rows, (row, bit >> 6), values)


def _length_rows(version: int, prefixes: Sequence[Prefix]) -> tuple[npt.NDArray[np.uint64], int]:
    short_lengths = 0
    rows = np.zeros(_BUCKETS4 if version == 4 else (_BUCKETS6, 2), np.uint64)
    single = []
    for bit in {length_bit(version, 0, each.address, each.length, POLICY_BUCKET6_BITS) for each in prefixes}:
        if version == 4 and bit.buckets > 1:
            rows[bit.first : bit.first + bit.buckets] |= np.uint64(1 << bit.length)
        elif version == 4:
            single.append((bit.first, bit.length))
        elif bit.buckets:
            single.append((bit.first, bit.length - C["BUCKET6_SHORTEST"]))
        else:
            short_lengths |= 1 << bit.length
    _set_bits(rows.reshape(len(rows), -1), single)
    return rows, short_lengths


def _grouped(rules: Sequence[Rule], key: Callable[[Rule], Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for bit, rule in enumerate(rules):
        groups.setdefault(key(rule), []).append(bit)
    return groups


def _protocol_rows(
    rules: Sequence[Rule], bits: _Bits, pool: _Pool
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The protocol and ICMP tables. Rules fall into few groups that ask the same below IP; a row is the union
    of the groups that its packets satisfy."""
    groups = _grouped(
        rules,
        lambda rule: (
            rule.effective_protocols(),
            bool(rule.source_ports or rule.destination_ports),
            rule.tcp_flags,
            rule.icmp_types,
        ),
    )
    representatives = [(rules[members[0]], bits.of(members)) for members in groups.values()]
    memory: dict[tuple[int, ...], int] = {}

    def row(satisfied: Callable[[Rule], bool]) -> int:
        chosen = tuple(i for i, (rule, _) in enumerate(representatives) if satisfied(rule))
        if chosen not in memory:
            vectors = [representatives[i][1] for i in chosen]
            memory[chosen] = pool.number(
                np.bitwise_or.reduce(vectors) if vectors else np.zeros(bits.words, np.uint64)
            )
        return memory[chosen]

    def has_protocol(rule: Rule, protocol: int) -> bool:
        protocols = rule.effective_protocols()
        return protocols is None or protocol in protocols

    def asks_ports(rule: Rule) -> bool:
        return bool(rule.source_ports or rule.destination_ports)

    def bare(protocol: int) -> int:
        return row(
            lambda rule: (
                not asks_ports(rule)
                and rule.tcp_flags is None
                and not rule.icmp_types
                and has_protocol(rule, protocol)
            )
        )

    def tcp(flags: int) -> int:
        return row(
            lambda rule: (
                not rule.icmp_types
                and has_protocol(rule, TCP)
                and (rule.tcp_flags is None or rule.tcp_flags.matches(flags))
            )
        )

    def ports(protocol: int) -> int:
        return row(
            lambda rule: not rule.icmp_types and rule.tcp_flags is None and has_protocol(rule, protocol)
        )

    def icmp(protocol: int, kind: int, code: int) -> int:
        return row(
            lambda rule: (
                not asks_ports(rule)
                and rule.tcp_flags is None
                and has_protocol(rule, protocol)
                and (
                    not rule.icmp_types
                    or any(each.type == kind and each.code in (None, code) for each in rule.icmp_types)
                )
            )
        )

    asked = {protocol for rule, _ in representatives for protocol in rule.effective_protocols() or ()}
    asks_flags = any(rule.tcp_flags for rule, _ in representatives)
    protocol_rows = np.zeros(_ROWS, np.uint64)
    protocol_rows[:256] = bare(_UNNAMED)
    for protocol in asked:
        protocol_rows[protocol] = bare(protocol)
    protocol_rows[_TCP_ROWS : _TCP_ROWS + 256] = (
        [tcp(flags) for flags in range(256)] if asks_flags else tcp(0)
    )
    for protocol in PORT_PROTOCOLS - {TCP}:
        protocol_rows[_PORT_ROWS + protocol] = ports(protocol)
    return protocol_rows, _icmp_rows(rules, icmp)


def _icmp_rows(rules: Sequence[Rule], icmp: Callable[[int, int, int], int]) -> npt.NDArray[np.uint64]:
    """Types and codes that no rule names share their type's row, types that none names share one."""
    named = {each for rule in rules for each in rule.icmp_types}
    rows = np.zeros((2, 256, 256), np.uint64)
    for table, protocol in enumerate((ICMP, ICMPV6)):
        rows[table] = icmp(protocol, -1, -1)
        for kind in {each.type for each in named}:
            rows[table, kind] = icmp(protocol, kind, -1)
        for each in named:
            if each.code is not None:
                rows[table, each.type, each.code] = icmp(protocol, each.type, each.code)
    return rows.reshape(-1)


def _merged(ranges: Sequence[PortRange]) -> list[tuple[int, int]]:
    """Disjoint half-open ranges."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last + 1))
        else:
            merged.append((first, last + 1))
    return merged


def _port_rows(rules: Sequence[Rule], side: str, bits: _Bits, pool: _Pool) -> npt.NDArray[np.uint32]:
    """A sweep over the ports: where a range starts or ends its rule's bit toggles, and the running XOR of the
    toggles is the vector of every port up to the next such place."""
    asked = [rule.source_ports if side == "source" else rule.destination_ports for rule in rules]
    any_vector = bits.of(bit for bit, ranges in enumerate(asked) if not ranges)
    toggles = [(at, bit) for bit, ranges in enumerate(asked) for edges in _merged(ranges) for at in edges]
    if not toggles:
        return np.full(C["PORT_ROWS"], pool.number(any_vector), np.uint32)
    ports, members = np.array(toggles, np.int64).T
    starts, interval = np.unique(np.append(ports, 0), return_inverse=True)
    sweep = np.zeros((len(starts), bits.words), np.uint64)
    sweep[0] = any_vector
    bit_values = np.left_shift(np.uint64(1), (members & 63).astype(np.uint64))
    np.bitwise_xor.at(sweep, (interval[:-1], members >> 6), bit_values)
    np.bitwise_xor.accumulate(sweep, axis=0, out=sweep)
    numbers = np.array(pool.numbers_of(sweep), np.uint32)
    return np.repeat(numbers, np.diff(np.append(starts, C["PORT_ROWS"]).clip(max=C["PORT_ROWS"])))


def _interface_vectors(
    rules: Sequence[Rule], interfaces: Mapping[str, int], bits: _Bits, pool: _Pool
) -> tuple[dict[int, int], int]:
    """Vector by ifindex, for the interfaces that some rule names, and the one for all others."""
    anywhere = [bit for bit, rule in enumerate(rules) if not rule.interfaces]
    scoped = [(bit, rule.interfaces) for bit, rule in enumerate(rules) if rule.interfaces]
    vectors = {}
    for name, ifindex in interfaces.items():
        members = [bit for bit, globs in scoped if any(fnmatchcase(name, glob) for glob in globs)]
        if members:
            vectors[ifindex] = pool.number(bits.of(anywhere + members))
    return vectors, pool.number(bits.of(anywhere))
