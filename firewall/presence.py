"""The filter before an address table: what its words say of a prefix (bpf/layout.h, struct filter_word).

Owns the hashes, as bpf/keys.h makes them, and the arithmetic of the words. A bit too many costs a probe, a bit too
few would miss a rule. Knows no map.

`mask`: one less than the number of words for prefixes; behind them stand those of regions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.layout import C

MASK_MIN = 511  # of words: a page
ENTRIES_PER_WORD = 4  # at most: then 1.6% of the prefixes that are not there seem to be
Words = npt.NDArray[np.uint64]
Prefixes = npt.NDArray[np.void]

_U64 = np.uint64
_MULTIPLIER = _U64(C["FILTER_MULTIPLIER"])
_FACTOR, _ALL = C["FILTER_MULTIPLIER"], (1 << 64) - 1
_REGION_BITS = {4: C["REGION_BITS4"], 6: C["REGION_BITS6"]}


class Marks(NamedTuple):
    """The bits that prefixes have in a filter: in word `places[n]` those of `bits[n]`. First the two of each prefix,
    then those of regions."""

    places: npt.NDArray[np.intp]
    bits: Words


def mask_for(entries: int) -> int:
    words = 1 << (-(-entries // ENTRIES_PER_WORD) - 1).bit_length()
    return min(max(MASK_MIN, words - 1), C["FILTER_WORDS"] - 1)


def marks(version: int, prefixes: Prefixes, mask: int) -> Marks:
    """Of prefixes as struct prefix4 or prefix6."""
    lengths = prefixes["length"].astype(np.int64)
    # Of the words of struct control the one with the length, and the bit there.
    word = np.zeros_like(lengths) if version == 4 else (lengths + 63) // 64
    length_bits = _U64(1) << ((32 if version == 4 else 64 * word) - lengths).astype(_U64)
    scopes, words = prefixes["scope"].astype(_U64), word.astype(_U64)
    if version == 4:
        numbers = numbers4(prefixes)
        hashes = hashes4(numbers)
        regions = numbers >> _U64(17) & _U64(0xFFFF)
    else:
        high, low = np.ascontiguousarray(prefixes["address"]).view(">u8").reshape(-1, 2).astype(_U64).T
        hashes = _mixed(_mixed(high + (scopes << _U64(2) | words)) + low) + length_bits
        hashes *= _MULTIPLIER
        regions = high >> _U64(32)
    longer = lengths >= _REGION_BITS[version]
    region_hashes = (scopes << _U64(34) | words << _U64(32) | regions) * _MULTIPLIER
    region_places = mask + 1 + _places(region_hashes[longer], mask >> C["FILTER_REGION_SHIFT"])
    return Marks(
        np.concatenate((_places(hashes, mask), region_places)),
        np.concatenate((_two_bits(hashes), length_bits[longer])),
    )


def marks_of_one(version: int, scope: int, length: int, address: int, mask: int) -> list[tuple[int, int]]:
    """The same of one prefix, as pairs of place and bits: whole numbers cost a tenth of arrays of one."""
    word = 0 if version == 4 else (length + 63) // 64
    length_bit = 1 << ((32 if version == 4 else 64 * word) - length)
    if version == 4:
        hashed = (scope << 34 | address << 1 | length_bit) * _FACTOR & _ALL
        region = address >> 16
    else:
        high, low = address >> 64, address & _ALL
        hashed = (_mixed_one(_mixed_one(high + (scope << 2 | word)) + low) + length_bit) * _FACTOR & _ALL
        region = high >> 32
    one, other = hashed >> C["FILTER_BIT_SHIFT"], hashed >> C["FILTER_OTHER_BIT_SHIFT"] & 63
    found = [(hashed >> C["FILTER_WORD_SHIFT"] & mask, 1 << one | 1 << other)]
    if length >= _REGION_BITS[version]:
        hashed = (scope << 34 | word << 32 | region) * _FACTOR & _ALL
        place = hashed >> C["FILTER_WORD_SHIFT"] & mask >> C["FILTER_REGION_SHIFT"]
        found.append((mask + 1 + place, length_bit))
    return found


def _mixed_one(value: int) -> int:
    product = value * _FACTOR & _ALL
    return product ^ product >> 32


def numbers4(prefixes: Prefixes) -> Words:
    """Of prefixes as struct prefix4 the numbers that stand for them; each has its own."""
    scopes, lengths = prefixes["scope"].astype(_U64), prefixes["length"].astype(_U64)
    networks = np.ascontiguousarray(prefixes["address"]).view(">u4").astype(_U64)
    return np.asarray(scopes << _U64(34) | networks << _U64(1) | _U64(1) << (_U64(32) - lengths))


def hashes4(numbers: Words) -> Words:
    return np.asarray(numbers * _MULTIPLIER)


def _mixed(values: Words) -> Words:
    product = values * _MULTIPLIER
    return np.asarray(product ^ product >> _U64(32))


def _two_bits(hashes: Words) -> Words:
    one, other = hashes >> _U64(C["FILTER_BIT_SHIFT"]), hashes >> _U64(C["FILTER_OTHER_BIT_SHIFT"])
    return np.asarray(_U64(1) << one | _U64(1) << (other & _U64(63)))


def _places(hashes: Words, mask: int) -> npt.NDArray[np.intp]:
    return (hashes >> _U64(C["FILTER_WORD_SHIFT"]) & _U64(mask)).astype(np.intp)


def set_marks(words: Words, some: Marks) -> None:
    """Packets may read the words meanwhile: none loses a bit for a moment."""
    np.bitwise_or.at(words, some.places, some.bits)


def may_hold(words: Words, version: int, prefixes: Prefixes, mask: int) -> npt.NDArray[np.bool_]:
    """Of each, whether its two bits are set. Lookups may know more by its region."""
    places, bits = (each[: len(prefixes)] for each in marks(version, prefixes, mask))
    return np.asarray(words[places] & bits == bits)
