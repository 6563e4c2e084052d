"""The other fields of the policy: tables from a protocol, an ICMP type, a port or an interface to a vector's number.

Owns which packets a rule's protocols, flags and types ask for, as rows of bpf/layout.h. Knows rules as bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from firewall.layout import C
from firewall.match import ICMP, ICMPV6, PORT_PROTOCOLS, TCP
from firewall.policy_addresses import Classes, Words, set_bits
from firewall.policy_columns import Below, Ints, Ranges

_TCP_ROWS, _PORT_ROWS, _ROWS = C["PROTOCOL_ROW_TCP"], C["PROTOCOL_ROW_PORTS"], C["PROTOCOL_ROWS"]
_UNNAMED = -1  # stands for every protocol that no rule names


@dataclass
class Pool:
    """The vectors of a policy and its classes of addresses, numbered in order of appearance; number 0 of either
    matches nothing."""

    count: int = 1
    pieces: list[tuple[int, Words]] = field(default_factory=list)
    class_count: int = 1
    classes: list[tuple[int, Classes]] = field(default_factory=list)
    _numbers: dict[bytes, int] = field(default_factory=dict)

    def append(self, rows: Words) -> None:
        self.pieces.append((self.count, rows))
        self.count += len(rows)

    def append_classes(self, classes: Classes) -> int:
        """Number of the first."""
        first = self.class_count
        self.classes.append((first, classes))
        self.class_count += len(classes)
        return first

    def numbers_of(self, rows: Words) -> npt.NDArray[np.uint32]:
        """Each distinct one is kept once."""
        contents = np.ascontiguousarray(rows).tobytes()
        size = rows.shape[1] * rows.itemsize
        known, following = self._numbers, self.count
        numbers = np.zeros(len(rows), np.uint32)
        new: list[int] = []
        for at in np.flatnonzero(rows.any(axis=1)).tolist():
            number = known.setdefault(contents[at * size : (at + 1) * size], following)
            if number == following:
                new.append(at)
                following += 1
            numbers[at] = number
        if new:
            self.append(rows[new])
        return numbers

    def next_hook(self) -> None:
        """Bits mean other rules now: vectors of the same content have nothing to do with each other."""
        self._numbers.clear()


def bit_vector(bits: Ints, words: int) -> Words:
    vector = np.zeros(words, np.uint64)
    set_bits(vector[None], np.zeros(len(bits), np.int64), bits)
    return vector


@dataclass(frozen=True)
class _Patterns:
    """The protocol and ICMP tables as numbers of sets; a set names those of some Belows that are satisfied."""

    sets: tuple[tuple[int, ...], ...]
    protocol: Ints
    icmp: Ints


def protocol_rows(
    belows: Sequence[Below], below: Ints, bits: Ints, words: int, pool: Pool
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """The protocol and the ICMP table. `below`: of each rule, which of `belows` it asks."""
    patterns = _patterns(tuple(belows))
    members = np.zeros((len(belows), words), np.uint64)
    set_bits(members, below, bits)
    vectors = np.zeros((len(patterns.sets), words), np.uint64)
    for at, satisfied in enumerate(patterns.sets):
        if satisfied:
            vectors[at] = np.bitwise_or.reduce(members[list(satisfied)])
    numbers = pool.numbers_of(vectors)
    return numbers[patterns.protocol], numbers[patterns.icmp]


@lru_cache(maxsize=4)
def _patterns(belows: tuple[Below, ...]) -> _Patterns:
    """They change only where a rule asks something that none asked before, so the last ones are remembered."""
    known: dict[tuple[int, ...], int] = {}

    def satisfied(is_satisfied: Callable[[Below], bool]) -> int:
        chosen = tuple(at for at, each in enumerate(belows) if is_satisfied(each))
        return known.setdefault(chosen, len(known))

    protocol = _protocol_pattern(belows, satisfied)
    icmp = _icmp_pattern(belows, satisfied)
    return _Patterns(tuple(known), protocol, icmp)


Satisfied = Callable[[Callable[[Below], bool]], int]


def _has_protocol(each: Below, protocol: int) -> bool:
    return each.protocols is None or protocol in each.protocols


def _protocol_pattern(belows: Sequence[Below], satisfied: Satisfied) -> Ints:
    def bare(protocol: int) -> int:
        return satisfied(
            lambda each: (
                not each.has_ports
                and each.tcp_flags is None
                and not each.icmp_types
                and _has_protocol(each, protocol)
            )
        )

    def tcp(flags: int) -> int:
        return satisfied(
            lambda each: (
                not each.icmp_types
                and _has_protocol(each, TCP)
                and (each.tcp_flags is None or each.tcp_flags.matches(flags))
            )
        )

    def ports(protocol: int) -> int:
        return satisfied(
            lambda each: not each.icmp_types and each.tcp_flags is None and _has_protocol(each, protocol)
        )

    rows = np.full(_ROWS, satisfied(lambda _: False), np.int64)
    rows[:256] = bare(_UNNAMED)
    for protocol in {protocol for each in belows for protocol in each.protocols or ()}:
        rows[protocol] = bare(protocol)
    asks_flags = any(each.tcp_flags for each in belows)
    rows[_TCP_ROWS : _TCP_ROWS + 256] = [tcp(flags) for flags in range(256)] if asks_flags else tcp(0)
    for protocol in PORT_PROTOCOLS - {TCP}:
        rows[_PORT_ROWS + protocol] = ports(protocol)
    return rows


def _icmp_pattern(belows: Sequence[Below], satisfied: Satisfied) -> Ints:
    """Types and codes that no rule names share their type's row, types that none names share one."""

    def icmp(protocol: int, kind: int, code: int) -> int:
        return satisfied(
            lambda each: (
                not each.has_ports
                and each.tcp_flags is None
                and _has_protocol(each, protocol)
                and (
                    not each.icmp_types
                    or any(one.type == kind and one.code in (None, code) for one in each.icmp_types)
                )
            )
        )

    named = {one for each in belows for one in each.icmp_types}
    rows = np.zeros((2, 256, 256), np.int64)
    for table, protocol in enumerate((ICMP, ICMPV6)):
        rows[table] = icmp(protocol, -1, -1)
        for kind in {one.type for one in named}:
            rows[table, kind] = icmp(protocol, kind, -1)
        for one in named:
            if one.code is not None:
                rows[table, one.type, one.code] = icmp(protocol, one.type, one.code)
    return rows.reshape(-1)


def port_rows(ranges: Ranges, bits: Ints, anywhere: Words, pool: Pool) -> npt.NDArray[np.uint32]:
    """A sweep over the ports: where a range starts or ends its rule's bit toggles, and the running XOR of the
    toggles is the vector of every port up to the next such place. `bits`: of each range's rule."""
    edges = np.concatenate((ranges.starts, ranges.ends)).astype(np.int64)
    members = np.concatenate((bits, bits))
    starts, at = np.unique(np.append(edges, 0), return_inverse=True)
    sweep = np.zeros((len(starts), len(anywhere)), np.uint64)
    sweep[0] = anywhere
    values = np.left_shift(np.uint64(1), (members & 63).astype(np.uint64))
    np.bitwise_xor.at(sweep.reshape(-1), at[:-1] * sweep.shape[1] + (members >> 6), values)
    np.bitwise_xor.accumulate(sweep, axis=0, out=sweep)
    numbers = pool.numbers_of(sweep)
    return np.repeat(numbers, np.diff(np.append(starts, C["PORT_ROWS"]).clip(max=C["PORT_ROWS"])))


def interface_vectors(
    glob_lists: Sequence[tuple[str, ...]],
    globs: Ints,
    bits: Ints,
    interfaces: Mapping[str, int],
    words: int,
    pool: Pool,
) -> tuple[dict[int, int], int]:
    """Vector by ifindex, for the interfaces that some rule names, and the one for all others. `globs`: of each rule,
    which of `glob_lists` it asks."""
    is_anywhere = np.array([not each for each in glob_lists], np.bool_)

    def number(fits: npt.NDArray[np.bool_]) -> int:
        return int(pool.numbers_of(bit_vector(bits[fits[globs]], words)[None])[0])

    vectors = {}
    for name, ifindex in interfaces.items():
        fits = np.array([any(fnmatchcase(name, glob) for glob in each) for each in glob_lists], np.bool_)
        if fits[globs].any():
            vectors[ifindex] = number(fits | is_anywhere)
    return vectors, number(is_anywhere)
