"""Puts programs of another owner on an interface, then runs a command beside them. Run in a test's namespace.

    foreign_programs.py INTERFACE PIN COMMAND...

On INTERFACE: a generic XDP program, a tcx egress program where the kernel has tcx, and two clsact egress
filters, the second of which is pinned at PIN, as if it were ours. Prints whether tcx was there, then the
command's output.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from pathlib import Path

from pyroute2 import IPRoute

from firewall.kernel import probe_bpf

PROG_LOAD, OBJ_PIN, LINK_CREATE = 5, 6, 28
SCHED_CLS, XDP, TCX_EGRESS = 3, 6, 47
PASS_AND_EXIT = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)


def load(kind: int, name: bytes) -> int:
    code, licence = ctypes.create_string_buffer(PASS_AND_EXIT, 16), ctypes.create_string_buffer(b"GPL")
    pointers = ctypes.addressof(code), ctypes.addressof(licence)
    return probe_bpf._bpf(PROG_LOAD, struct.pack("=IIQQIIQII16s", kind, 2, *pointers, 0, 0, 0, 0, 0, name))[0]


def attach_tcx(ifindex: int) -> bool:
    """The link lives as long as this process."""
    attributes = struct.pack("=IIII", load(SCHED_CLS, b"other_tcx"), ifindex, TCX_EGRESS, 0)
    try:
        probe_bpf._bpf(LINK_CREATE, attributes)
    except OSError:
        return False
    return True


def main(interface: str, pin: str, *command: str) -> int:
    own = load(SCHED_CLS, b"own_tc")
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=interface)[0]
        fd = load(XDP, b"other_xdp")
        ip.link("set", index=index, IFLA_XDP={"attrs": [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", 2)]})
        ip.tc("add", "clsact", index)
        for prio, program in ((5, load(SCHED_CLS, b"other_tc")), (9, own)):
            where = {"parent": "ffff:fff3", "prio": prio}
            ip.tc("add-filter", "bpf", index, fd=program, name="x", direct_action=True, **where)
    Path(pin).parent.mkdir(parents=True)
    path = ctypes.create_string_buffer(pin.encode())
    probe_bpf._bpf(OBJ_PIN, struct.pack("=QI", ctypes.addressof(path), own))
    print("tcx" if attach_tcx(index) else "no tcx", flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
