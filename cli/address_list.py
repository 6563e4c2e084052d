"""Owns reading a plain-text list of addresses, one a line, and the rules it stands for. It does no I/O."""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

# An IPv6 CIDR has 43 characters and an id at most 64; five more go to `:out:`.
PREFIX_LIMIT = 64 - 43 - 5


@dataclass(frozen=True)
class AddressList:
    """Addresses in their shortest spelling, each once, in the list's order; bad lines with their number."""

    addresses: tuple[str, ...]
    duplicates: int
    bad: tuple[tuple[int, str], ...]


def parse(lines: Iterable[str]) -> AddressList:
    """`#` and `;` begin a comment, on a line of its own or behind an address; empty lines are skipped."""
    found: dict[str, None] = {}
    bad: list[tuple[int, str]] = []
    count = 0
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].partition(";")[0].strip()
        if not text:
            continue
        try:
            found[_normal(text)] = None
        except ValueError as error:
            bad.append((number, str(error)))
        else:
            count += 1
    return AddressList(tuple(found), count - len(found), tuple(bad))


def rules(
    addresses: Iterable[str], *, action: str, priority: int, direction: str, prefix: str
) -> Iterator[dict[str, Any]]:
    """One rule an address and hook: a list names peers, the source at ingress, the destination at egress.

    The ids come from the addresses: importing the same list again finds its rules and changes nothing.
    """
    sides = [("ingress", "in", "sources"), ("egress", "out", "destinations")]
    wanted = [side for side in sides if direction in (side[0], "both")]
    return (
        {
            "id": f"{prefix}:{side}:{address.replace('/', '-')}",
            "action": action,
            "priority": priority,
            "direction": hook,
            field: [address],
        }
        for address in addresses
        for hook, side, field in wanted
    )


def _normal(text: str) -> str:
    """The shortest spelling. ValueError says what is wrong with it."""
    try:
        socket.inet_pton(socket.AF_INET, text)  # 20 times as fast as ipaddress, and nearly every line is one
        return text
    except (OSError, ValueError):
        pass
    if "%" in text:
        raise ValueError(f"{text}: an address in a rule has no zone")
    if "/" not in text:
        try:
            return str(ip_address(text))
        except ValueError:
            raise ValueError(f"{text}: not an address or CIDR") from None
    address, _, length = text.partition("/")
    try:
        # ipaddress takes netmasks and host masks as well, the service takes neither.
        if not (length.isascii() and length.isdecimal() and len(length) <= 3):
            raise ValueError
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text}: not an address or CIDR") from None
    if network.network_address != ip_address(address):
        raise ValueError(f"{text}: host bits are set; the network is {network}")
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
