"""Owns the question of `ebpf-fw check`: can ebpf-fw work on this host and on these interfaces.

It must not attach or change anything. The parts: `probe_host` judges the machine, `probe_link` and
`probe_driver` read an interface, `probe_interface` judges it, `probe_bpf` asks bpf(2).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from firewall.kernel import probe_bpf, probe_host, probe_interface, probe_link
from firewall.kernel.finding import Finding

__all__ = ["Finding", "probe"]

PIN_ROOT = Path("/sys/fs/bpf/ebpf-fw")


def probe(interfaces: Sequence[str] | None = None, *, pin_root: Path = PIN_ROOT) -> list[Finding]:
    """Findings on the host, then on each interface; None stands for every interface but the loopback.

    `pin_root` tells our own programs from those of others.
    """
    findings = probe_host.findings()
    host = probe_interface.Host(
        cpus=len(os.sched_getaffinity(0)),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        ours=probe_bpf.pinned_program_ids(pin_root),
        release=os.uname().release,
    )
    for name in probe_link.interface_names() if interfaces is None else interfaces:
        link = probe_link.read(name)
        findings += [probe_interface.missing(name)] if link is None else probe_interface.findings(link, host)
    return findings
