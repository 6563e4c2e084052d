"""Address lists to filter by: random hosts, and a mixture such as public blocklists are.

Owns making them, addresses in and out of them, and counting the probes that a lookup makes. All IPv4 addresses
are of 1.0.0.0 to 223.255.255.255 without 127/8, 192.0.2/24 and 198.18/15, which the benchmarks use themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.frames import Addresses4, Addresses6
from firewall.address_list import PrefixColumns
from firewall.layout import PREFIX4, PREFIX6
from firewall.presence import may_hold

Random = np.random.Generator
Words = npt.NDArray[np.uint64]

# Share of each prefix length, after the aggregates of FireHOL and ipsum: hosts, then /24, little else.
LENGTHS4 = {
    8: 1e-5, 10: 1e-5, 12: 3e-5, 14: 1e-4, 15: 1e-4, 16: 6e-4, 17: 4e-4, 18: 6e-4, 19: 1e-3, 20: 2e-3, 21: 2e-3,
    22: 5e-3, 23: 4e-3, 24: 6e-2, 25: 1e-3, 26: 1e-3, 27: 1e-3, 28: 1e-3, 29: 2e-3, 30: 2e-3, 32: 0.915,
}  # fmt: skip
LENGTHS6 = {29: 0.002, 32: 0.03, 40: 0.01, 44: 0.01, 48: 0.15, 56: 0.05, 64: 0.45, 128: 0.298}
SHARE_OF_IPV6 = 0.05
PREFIX = {4: PREFIX4, 6: PREFIX6}
_CLUSTERED = 0.7  # of hosts stand in few networks: providers whose machines are abused
_NETWORKS = 6000  # of length 16
_NETWORKS6 = 4000  # of length 32
_NESTED = 0.15  # of prefixes stand inside a larger one of the list


def random_hosts(random: Random, count: int) -> Addresses4:
    """Distinct, in random order."""
    drawn = np.zeros(0, np.uint32)
    while len(drawn) < count:
        some = random.integers(1 << 24, 224 << 24, count + count // 8 + 64, np.uint32)
        keep = ~((some >> 24 == 127) | (some >> 17 == 0xC612 >> 1) | (some >> 8 == 0xC00002))
        drawn = np.unique(np.concatenate((drawn, some[keep])))
    return random.permutation(drawn)[:count]


def hosts_without(random: Random, count: int, listed: Addresses4) -> Addresses4:
    """Random hosts, none of them listed."""
    found = random_hosts(random, count + count // 4)
    return found[~np.isin(found, listed)][:count]


def host_columns(hosts: Addresses4) -> PrefixColumns:
    return PrefixColumns(4, np.full(len(hosts), 32, np.uint8), rows4(hosts))


def text(hosts: Addresses4) -> list[str]:
    """Dotted quads."""
    a, b, c, d = ((hosts >> shift & 255).tolist() for shift in (24, 16, 8, 0))
    return [f"{w}.{x}.{y}.{z}" for w, x, y, z in zip(a, b, c, d, strict=True)]


@dataclass(frozen=True)
class MixedList:
    """Networks (masked) and lengths; IPv6 networks as rows of 16 bytes."""

    networks4: Addresses4
    lengths4: npt.NDArray[np.uint8]
    networks6: Addresses6
    lengths6: npt.NDArray[np.uint8]

    def columns(self) -> list[PrefixColumns]:
        return [
            PrefixColumns(4, self.lengths4, rows4(self.networks4)),
            PrefixColumns(6, self.lengths6, self.networks6),
        ]

    def hosts_in4(self, random: Random, count: int) -> Addresses4:
        """Addresses that the list covers: of a random entry a random host."""
        at = random.integers(0, len(self.lengths4), count)
        host_bits = random.integers(0, 1 << 32, count, np.uint32) & ~masks4(self.lengths4[at])
        return np.asarray(self.networks4[at] | host_bits, np.uint32)

    def hosts_in6(self, random: Random, count: int) -> Addresses6:
        at = random.integers(0, len(self.lengths6), count)
        host_bits = random.integers(0, 256, (count, 16), np.uint8) & ~masks6(self.lengths6[at])
        return np.asarray(self.networks6[at] | host_bits, np.uint8)


def masks4(lengths: npt.NDArray[np.uint8]) -> Addresses4:
    ones = np.uint64(0xFFFFFFFF)
    return (ones << (np.uint64(32) - lengths.astype(np.uint64)) & ones).astype(np.uint32)


def masks6(lengths: npt.NDArray[np.uint8]) -> Addresses6:
    bits = np.clip(lengths.astype(np.int64)[:, None] - np.arange(16) * 8, 0, 8)
    return np.asarray(0xFF00 >> bits & 0xFF, np.uint8)


def _drawn_lengths(random: Random, shares: dict[int, float], count: int) -> npt.NDArray[np.uint8]:
    weights = np.array(list(shares.values()))
    return random.choice(np.array(list(shares), np.uint8), count, p=weights / weights.sum())


def mixed_list(random: Random, count: int) -> MixedList:
    """`count` distinct prefixes of both families: clustered and nested as real lists are."""
    six = int(count * SHARE_OF_IPV6)
    networks4, lengths4 = _mixed4(random, count - six)
    networks6, lengths6 = _mixed6(random, six)
    return MixedList(networks4, lengths4, networks6, lengths6)


def _mixed4(random: Random, count: int) -> tuple[Addresses4, npt.NDArray[np.uint8]]:
    keys = np.zeros(0, np.uint64)
    clusters = random_hosts(random, _NETWORKS) & np.uint32(0xFFFF0000)
    while len(keys) < count:
        some = count + count // 8
        addresses = random_hosts(random, some)
        clustered = random.random(some) < _CLUSTERED
        picked = clusters[random.choice(_NETWORKS, some, p=_network_shares())]
        addresses = np.where(clustered, picked | addresses & np.uint32(0xFFFF), addresses).astype(np.uint32)
        lengths = _drawn_lengths(random, LENGTHS4, some)
        addresses = _nested(random, addresses, lengths) & masks4(lengths)
        keys = np.unique(np.concatenate((keys, addresses.astype(np.uint64) << np.uint64(8) | lengths)))
    keys = random.permutation(keys)[:count]
    return (keys >> np.uint64(8)).astype(np.uint32), (keys & np.uint64(255)).astype(np.uint8)


def _network_shares() -> npt.NDArray[np.float64]:
    """Zipf's law, flattened at its head: the worst network has a third of a percent of the clustered hosts."""
    shares = 1 / (np.arange(_NETWORKS) + 50) ** 0.9
    return np.asarray(shares / shares.sum(), np.float64)


def _nested(random: Random, addresses: Addresses4, lengths: npt.NDArray[np.uint8]) -> Addresses4:
    """Moves some addresses into the networks of other entries that are larger than a host."""
    networks = np.flatnonzero(lengths < 30)
    around = networks[random.integers(0, len(networks), len(addresses))]
    moves = (random.random(len(addresses)) < _NESTED) & (lengths > lengths[around])
    mask = masks4(lengths[around])
    return np.where(moves, addresses[around] & mask | addresses & ~mask, addresses).astype(np.uint32)


def _mixed6(random: Random, count: int) -> tuple[Addresses6, npt.NDArray[np.uint8]]:
    addresses = random.integers(0, 256, (count + count // 4 + 8, 16), np.uint8)
    providers = random.integers(0, 256, (_NETWORKS6, 4), np.uint8)
    providers[:, 0] = 0x20 | providers[:, 0] & 0x0F
    addresses[:, :4] = providers[random.integers(0, _NETWORKS6, len(addresses))]
    lengths = _drawn_lengths(random, LENGTHS6, len(addresses))
    rows = np.column_stack((lengths, addresses & masks6(lengths)))
    rows = random.permutation(np.unique(rows, axis=0))[:count]
    return np.ascontiguousarray(rows[:, 1:]), np.ascontiguousarray(rows[:, 0])


def probes(
    words: Words, mask: int, version: int, lengths: int, sources: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """Hash probes that each source costs at most: the prefixes of it that the filter cannot rule out. `words`, `mask`:
    of the filter; `lengths`: of list 0, sources at ingress, bit n for length n; `sources`: rows of 4 or 16 bytes."""
    counts = np.zeros(len(sources), np.int64)
    prefixes = np.zeros(len(sources), PREFIX[version])
    for length in (each for each in range(lengths.bit_length()) if lengths >> each & 1):
        bits = np.clip(length - np.arange(sources.shape[1]) * 8, 0, 8)
        masked = sources & (0xFF00 >> bits & 0xFF).astype(np.uint8)
        prefixes["length"] = length
        prefixes["address"] = masked.view("<u4").reshape(prefixes["address"].shape)
        counts += may_hold(words, version, prefixes, mask)
    return counts


def rows4(addresses: Addresses4) -> npt.NDArray[np.uint8]:
    """Four bytes each, in network order."""
    return addresses.astype(">u4").view(np.uint8).reshape(-1, 4)
