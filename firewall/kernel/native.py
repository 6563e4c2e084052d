"""Why a driver refused native mode, and the command that mends it.

Owns putting the driver's own words beside what `ebpf-fw check` finds on the interface. It changes nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EOPNOTSUPP

from firewall.errors import KernelRefused
from firewall.kernel import probe_interface, probe_link

# Findings of the probe that can make a driver refuse; those with a command can be mended.
_CAUSES = ("mtu", "lro", "rx-gro-hw", "virtio", "peer", "sriov", "channels", "queues", "port")


def explain(refusal: KernelRefused, interface: str) -> None:
    """Puts what the interface shows into the refusal's hint."""
    if advice := _advice(interface):
        refusal.hint = advice
    elif refusal.errno == EOPNOTSUPP:
        refusal.hint = "the driver has no native XDP; generic mode works with every driver"


def _advice(interface: str) -> str:
    with suppress(Exception):  # the advice is an extra: no trouble with it may hide the refusal
        link = probe_link.read(interface)
        if link is None:
            return ""
        host = probe_interface.Host(
            len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE"), frozenset(), os.uname().release
        )
        causes = [
            found
            for found in probe_interface.findings(link, host)
            if found.name in _CAUSES and found.status != "ok"
        ]
        return "; ".join(
            f"{found.name} {found.detail}" + (f": `{found.mend}`, then attach again" if found.mend else "")
            for found in causes
        )
    return ""
