"""Two network namespaces and the veth pairs between them: made, found again after a crash, removed.

Owns names, addresses and the runtime directory of one test's world. It must not start the service or send
traffic. Names come from a hash of the test's id, so a run that was killed is cleaned up by the next one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RUNTIME = Path("/run/ebpf-fw-tests")
PREFIX = "fwt-"


@dataclass(frozen=True)
class Link:
    """One veth pair. `interface` is the end in the protected namespace, `peer_interface` the other."""

    number: int

    @property
    def interface(self) -> str:
        return f"fw{self.number}"

    @property
    def peer_interface(self) -> str:
        return f"peer{self.number}"

    @property
    def mac(self) -> str:
        return f"02:00:00:00:{self.number:02x}:01"

    @property
    def peer_mac(self) -> str:
        return f"02:00:00:00:{self.number:02x}:02"

    def address(self, family: int = 4) -> str:
        return f"10.90.{self.number}.1" if family == 4 else f"fd90:{self.number}::1"

    def peer_address(self, family: int = 4) -> str:
        return f"10.90.{self.number}.2" if family == 4 else f"fd90:{self.number}::2"


@dataclass(frozen=True)
class Topology:
    """The names of one world. Nothing exists until `build`; `remove` is safe whatever exists."""

    name: str
    links: tuple[Link, ...]
    static_neighbours: bool = True

    @classmethod
    def for_test(cls, test_id: str, links: int = 1, static_neighbours: bool = True) -> Topology:
        """The checkout is part of the hash: two of them may run their tests at once."""
        digest = hashlib.sha256(f"{Path(__file__).resolve()}:{test_id}".encode()).hexdigest()[:10]
        return cls(f"{PREFIX}{digest}", tuple(Link(number) for number in range(links)), static_neighbours)

    @property
    def protected(self) -> str:
        return f"{self.name}-s"

    @property
    def peer(self) -> str:
        return f"{self.name}-p"

    @property
    def namespaces(self) -> tuple[str, str]:
        return self.protected, self.peer

    @property
    def directory(self) -> Path:
        return RUNTIME / self.name

    @property
    def bpffs(self) -> Path:
        """Mounted in the host's mount namespace, so that pins outlive the service's own."""
        return self.directory / "bpffs"

    def build(self) -> None:
        self.remove()
        self.bpffs.mkdir(parents=True)
        run("mount", "-t", "bpf", "bpffs", str(self.bpffs))
        for namespace in self.namespaces:
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        for link in self.links:
            self._add_link(link)
        wait_until(self._carriers_are_up, "the veth pairs have a carrier", timeout_s=5)

    def remove(self) -> None:
        for namespace in self.namespaces:
            if namespace_exists(namespace):
                kill_processes(namespace)
                run("ip", "netns", "delete", namespace)
        while os.path.ismount(self.bpffs):
            run("umount", str(self.bpffs))
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def leaks(self) -> list[str]:
        """What is still there, in words; empty after `remove`, unless something holds on to it."""
        found = [f"namespace {name}" for name in self.namespaces if namespace_exists(name)]
        return found + ([f"directory {self.directory}"] if self.directory.exists() else [])

    def strangers(self) -> list[str]:
        """Processes that still run in the namespaces, in words."""
        return [
            f"process {pid} ({command_of(pid)}) in {namespace}"
            for namespace in self.namespaces
            if namespace_exists(namespace)
            for pid in processes(namespace)
        ]

    def _add_link(self, link: Link) -> None:
        end = f"{link.interface} address {link.mac} netns {self.protected}"
        other_end = f"{link.peer_interface} address {link.peer_mac} netns {self.peer}"
        run(*f"ip link add {end} type veth peer name {other_end}".split())
        ends = (
            (self.protected, link.interface, link.address, link.peer_address, link.peer_mac),
            (self.peer, link.peer_interface, link.peer_address, link.address, link.mac),
        )
        for namespace, interface, own, other, other_mac in ends:
            # No link-local address: the kernel then sends nothing that a test did not ask for.
            run("ip", "-n", namespace, "link", "set", interface, "addrgenmode", "none", "up")
            for family, length in ((4, 24), (6, 64)):
                on = ["dev", interface]
                run("ip", "-n", namespace, "address", "add", f"{own(family)}/{length}", *on, *nodad(family))
                if self.static_neighbours:
                    run(
                        "ip", "-n", namespace, "neighbour", "replace", other(family), "lladdr", other_mac, *on
                    )

    def _carriers_are_up(self) -> bool:
        shown = run("ip", "-o", "-n", self.protected, "link", "show", "type", "veth")
        return shown.count("LOWER_UP") == len(self.links)


def nodad(family: int) -> list[str]:
    """Duplicate address detection keeps an IPv6 address unusable for a second or two."""
    return ["nodad"] if family == 6 else []


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 10, step_s: float = 0.02) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s, but not: {what}")
        time.sleep(step_s)


def namespace_exists(namespace: str) -> bool:
    return Path("/run/netns", namespace).exists()


def processes(namespace: str) -> list[int]:
    return [int(pid) for pid in run("ip", "netns", "pids", namespace).split()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except FileNotFoundError:
        return "ended"


def kill_processes(namespace: str) -> None:
    """End what an earlier, killed run of the same test left in a namespace that only it uses."""
    for pid in processes(namespace):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(lambda: not processes(namespace), f"{namespace} has no processes")
