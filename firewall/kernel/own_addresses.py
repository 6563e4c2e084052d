"""This host's own addresses (netlink), of the network namespace that the service runs in.

Owns the reading. Loopback's are left out: they are nobody else's in any case.
"""

from __future__ import annotations

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from firewall.address import BITS, Prefix, parse_prefix
from firewall.errors import kernel_refused

_LOOPBACK = (Prefix(4, 127 << 24, 8), Prefix(6, 1, 128))


def own_addresses() -> list[Prefix]:
    """Raises KernelRefused."""
    found = set()
    try:
        with IPRoute() as netlink:
            for message in netlink.get_addr():
                text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
                if text:
                    address = parse_prefix(text)
                    found.add(Prefix(address.version, address.address, BITS[address.version]))
    except (NetlinkError, OSError) as error:
        number = getattr(error, "code", None) or getattr(error, "errno", None) or 0
        raise kernel_refused("reading this host's addresses", number) from None
    return sorted(each for each in found if not any(net.covers(each) for net in _LOOPBACK))
