"""One entry of a list as text to the prefixes that it names: an address, a CIDR, or a range of addresses.

Owns what is accepted where lists are read, which is more than rules accept: host bits are masked away, since ipset and
nft take them so, and ranges are split. One at a time; many are firewall.lists.prefix_text's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from firewall.address import BITS, Prefix, host_bits, parse_prefix


class Named(NamedTuple):
    """`had_host_bits`: the text named an address inside the network that was taken."""

    prefixes: list[Prefix]
    had_host_bits: bool


def prefixes_of(text: str) -> Named:
    """Raises ValueError with what is wrong."""
    if "-" in text:
        first, _, last = (part.strip() for part in text.partition("-"))
        return Named(list(split_range(_address(first, text), _address(last, text))), False)
    address, slash, length = text.partition("/")
    try:
        return Named([parse_prefix(text)], False)
    except ValueError:
        if not slash or not (length.isascii() and length.isdecimal() and len(length) <= 3):
            raise
        whole = parse_prefix(address)
        if int(length) > BITS[whole.version]:
            raise
        return Named([network(whole.version, whole.address, int(length))], True)


def _address(text: str, whole: str) -> Prefix:
    if "/" in text:
        raise ValueError(f"{whole!r}: a range is from one address to another, without prefix lengths")
    try:
        return parse_prefix(text)
    except ValueError:
        raise ValueError(f"{whole!r} is neither an address, a CIDR nor a range of addresses") from None


def network(version: int, address: int, length: int) -> Prefix:
    return Prefix(version, address & ~host_bits(version, length), length)


def split_range(first: Prefix, last: Prefix) -> Iterator[Prefix]:
    """The fewest prefixes that are together all addresses from `first` to `last`. Raises ValueError."""
    if first.version != last.version:
        raise ValueError(f"'{first}-{last}': both ends of a range are of one IP version")
    if first.address > last.address:
        raise ValueError(f"'{first}-{last}': the range ends before it begins")
    bits, at = BITS[first.version], first.address
    while at <= last.address:
        aligned = (at & -at).bit_length() - 1 if at else bits
        fitting = (last.address - at + 1).bit_length() - 1
        size = min(aligned, fitting)
        yield Prefix(first.version, at, bits - size)
        at += 1 << size
