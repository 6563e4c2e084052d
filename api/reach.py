"""Whom the service's own sockets reach: what it listens and asks for, and what the unit lets through.

Owns noticing that the two contradict each other, which from outside looks like a host that is down.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import structlog

from api.systemd import UNIT_VARIABLE, systemctl

log = structlog.get_logger(__name__)
_OUT_HINT = "`systemctl edit ebpf-fw`, [Service] IPAddressAllow=any, then restart"
_HINT = "`systemctl edit ebpf-fw`, [Service] IPAddressAllow=192.0.2.0/24 (those who may), then restart"


def warn_if_closed(listeners: Sequence[socket.socket]) -> None:
    """Where the service listens for other hosts and its unit keeps them out."""
    if is_for_others(listeners) and lets_in_this_host_alone():
        log.warning("nobody but this host reaches the API: the unit's IPAddressDeny=", hint=_HINT)


def warn_if_kept_from(urls: Sequence[str]) -> None:
    """Where lists are to come from other hosts and the unit keeps the service from them."""
    others = sorted({host for each in urls if not _is_this_host(host := urlsplit(each).hostname or "")})
    if others and lets_in_this_host_alone():
        log.warning(
            "lists from other hosts cannot be fetched: the unit's IPAddressDeny=",
            hosts=others,
            hint=_OUT_HINT,
        )


def _is_this_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


def is_for_others(listeners: Sequence[socket.socket]) -> bool:
    hosts = [each.getsockname()[0] for each in listeners if each.family != socket.AF_UNIX]
    return not all(ipaddress.ip_address(host).is_loopback for host in hosts)


def lets_in_this_host_alone() -> bool:
    """By the unit's IPAddressDeny= and IPAddressAllow=, as systemd tells them."""
    unit = os.environ.get(UNIT_VARIABLE)
    if not unit or not any(each.prefixlen == 0 for each in _networks("IPAddressDeny", unit)):
        return False
    return all(each.is_loopback for each in _networks("IPAddressAllow", unit))


def _networks(key: str, unit: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    told = systemctl("show", f"--property={key}", "--value", unit) or ""
    return [ipaddress.ip_network(each, strict=False) for each in told.split()]
