"""Where the benchmarks happen: a network and a mount namespace of this process's own, with one veth pair.

Owns entering it. Nothing outside is touched, and the kernel removes all of it when the last process in it ends,
however that ends. Attaching anything is the contenders' part.

    INJECT ---- GUARDED     frames enter at INJECT; the filters under test stand at GUARDED
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INJECT, GUARDED = "inject", "guarded"
INJECT_MAC, GUARDED_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
# Where all frames go: routed into a black hole, so that a frame which passes costs every contender the same.
DESTINATIONS4, DESTINATIONS6 = "198.18.0.0/15", "2001:db8:ffff::/48"
BPFFS = Path("/sys/fs/bpf")
# A disk, not a tmpfs as /tmp may be: durability is part of what is measured.
SCRATCH = Path("/var/tmp")

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class World:
    """`directory`: on a disk, removed at the end. `cpu`: the one that packets are measured on."""

    directory: Path
    cpu: int
    inject: int
    guarded: int


def run(*command: str, stdin: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """A tool's output. `environment`: beside ours. Raises RuntimeError with what it said."""
    variables = {**os.environ, **(environment or {})}
    with (stdin or Path(os.devnull)).open("rb") as source:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=source, env=variables, check=False
        )
    if done.returncode:
        raise RuntimeError(
            f"`{' '.join(command)}` failed with {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return done.stdout


def ends_with_parent() -> None:
    """For a child before it starts: it gets SIGKILL when this process ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _checked(result: int, action: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{action}: {os.strerror(ctypes.get_errno())}")


def _own_namespaces() -> None:
    _checked(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "making namespaces (is this root?)")
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "sysfs", "sysfs", "/sys")
    run("mount", "-t", "bpf", "bpf", str(BPFFS))


def _set(name: str, value: int) -> None:
    Path("/proc/sys/net", name).write_text(str(value))


def _make_links() -> None:
    run(
        *f"ip link add {GUARDED} address {GUARDED_MAC} type veth peer name {INJECT} address {INJECT_MAC}".split()
    )
    for name in ("lo", GUARDED, INJECT):
        run("ip", "link", "set", name, *(() if name == "lo" else ("addrgenmode", "none")), "up")
    # NAPI on the guarded end even where no XDP program is: frames that are injected come in by it.
    run("ethtool", "-K", GUARDED, "gro", "on")
    for scope in ("all", "default", GUARDED):
        _set(f"ipv4/conf/{scope}/rp_filter", 0)
    run("ip", "address", "add", "192.0.2.1/32", "dev", GUARDED)
    run("ip", "route", "add", "blackhole", DESTINATIONS4)
    run("ip", "-6", "route", "add", "blackhole", DESTINATIONS6)


def ifindex(name: str) -> int:
    return int(Path(f"/sys/class/net/{name}/ifindex").read_text())


@contextmanager
def entered() -> Iterator[World]:
    """Call once, before this process has threads."""
    _own_namespaces()
    _make_links()
    cpu = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="ebpf-fw-bench-", dir=SCRATCH) as directory:
        yield World(Path(directory), cpu, ifindex(INJECT), ifindex(GUARDED))


@contextmanager
def on_one_cpu(world: World) -> Iterator[None]:
    """For packets: the sender, the receiver's NAPI and the filter share one CPU, as flows of one queue do. Other
    processes of the machine get little of it meanwhile."""
    before, nice = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
    os.sched_setaffinity(0, {world.cpu})
    os.setpriority(os.PRIO_PROCESS, 0, -19)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        os.sched_setaffinity(0, before)
