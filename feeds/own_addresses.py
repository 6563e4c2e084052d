"""This host's own addresses, which a list from outside must not block.

Reads what the kernel tells in /proc/net, of the namespace that the service runs in.
"""

from __future__ import annotations

import re
from pathlib import Path

from firewall.address import Prefix, parse_prefix

_LOCAL = re.compile(r"\|-- ([0-9.]+)\n(?:\s+/\d+ [^\n]*\n)*?\s+/32 host LOCAL")


def own_addresses(proc: Path = Path("/proc/net")) -> list[Prefix]:
    """Without loopback's. Nothing where the kernel tells nothing."""
    found = {parse_prefix(address) for address in _LOCAL.findall(_read(proc / "fib_trie"))}
    for line in _read(proc / "if_inet6").splitlines():
        digits, *_ = line.split()
        found.add(Prefix(6, int(digits, 16), 128))
    loopback = (Prefix(4, 127 << 24, 8), Prefix(6, 1, 128))
    return sorted(each for each in found if not any(net.covers(each) for net in loopback))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
