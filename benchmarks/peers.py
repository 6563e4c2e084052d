"""What a user would otherwise pick: xdp-filter, nftables' netdev hook, iptables raw with ipset.

Owns their commands and reading their own counters. Each is loaded once; `active` puts its filter on the guarded
interface and takes it off again, so that contenders can alternate within a run.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.world import GUARDED, run
from firewall.kernel import bpf

TOOLS = ("xdp-filter", "nft", "iptables", "ipset", "ethtool")
_NETLINK_NETFILTER, _NFPROTO_NETDEV, _NFT_OBJECT_COUNTER, _NFT_MSG_GETOBJ = 12, 5, 1, 10 << 8 | 19
PACKAGES = {"xdp-filter": "xdp-tools", "nft": "nftables"}


def missing_packages() -> list[str]:
    return [PACKAGES.get(tool, tool) for tool in TOOLS if shutil.which(tool) is None]


def versions() -> dict[str, str]:
    """What each tool says of itself. xdp-filter says it with exit status 1."""
    commands = {
        "xdp-filter": ("xdp-filter", "status", "--version"),
        "nft": ("nft", "--version"),
        "iptables": ("iptables", "--version"),
        "ipset": ("ipset", "--version"),
    }
    return {tool: _first_line(command) for tool, command in commands.items()}


def _first_line(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return next(iter((done.stdout or done.stderr).splitlines()), "?").strip()


def program_on(interface: str) -> int:
    """Descriptor of the XDP program that stands there."""
    (link,) = json.loads(run("ip", "-j", "link", "show", interface))
    fd = bpf.program_by_id(link["xdp"]["prog"]["id"])
    assert fd is not None
    return fd


@contextmanager
def xdp_filter(address: str) -> Iterator[int]:
    """Drops one source, natively. The descriptor of its program, which stands on the interface alone: libxdp's
    dispatcher in front of it would make it slower, and not every kernel takes that."""
    environment = {"LIBXDP_SKIP_DISPATCHER": "1"}
    run("xdp-filter", "load", "-m", "native", "-p", "allow", "-f", "ipv4", GUARDED, environment=environment)
    try:
        run("xdp-filter", "ip", address, "-m", "src", environment=environment)
        fd = program_on(GUARDED)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        run("xdp-filter", "unload", GUARDED, environment=environment)


@contextmanager
def xdp_program(fd: int, pin: Path) -> Iterator[None]:
    """A program of ours on the guarded interface, natively."""
    bpf.pin(fd, pin)
    try:
        run("ip", "link", "set", "dev", GUARDED, "xdpdrv", "pinned", str(pin))
        try:
            yield
        finally:
            run("ip", "link", "set", "dev", GUARDED, "xdpdrv", "off")
    finally:
        pin.unlink()


def _lines(prefix: str, addresses: Sequence[str]) -> str:
    return "".join([f"{prefix}{address}\n" for address in addresses])


class Ipset:
    """A hash:ip set; iptables asks it in the raw table, where packets are cheapest to drop."""

    name = "iptables raw + ipset"
    rule = ("PREROUTING", "-i", GUARDED, "-m", "set", "--match-set", "bench", "src", "-j", "DROP")
    default = ("PREROUTING", "-i", GUARDED, "-j", "DROP")

    def __init__(self, directory: Path) -> None:
        self._path = directory / "ipset.restore"
        self.cpu_s = 0.0  # of the last load

    def write(self, addresses: Sequence[str], name: str = "bench") -> None:
        """hashsize: what `ipset save` writes for a set of this size, so that restoring needs no rehash."""
        size = 1 << max(10, (len(addresses) - 1).bit_length() - 1)
        create = f"create {name} hash:ip hashsize {size} maxelem {max(65536, 2 * size)}\n"
        self._path.write_text(create + _lines(f"add {name} ", addresses))

    def load(self) -> float:
        """Seconds."""
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        run("ipset", "restore", stdin=self._path)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds

    def load_and_swap(self, name: str) -> float:
        """A second set, as it was written, takes the place of the first, which goes. Seconds."""
        seconds = self.load()
        started = time.perf_counter()
        run("ipset", "swap", name, "bench")
        run("ipset", "destroy", name)
        return seconds + time.perf_counter() - started

    def holds(self, addresses: Sequence[str]) -> bool:
        """Raises RuntimeError where one is missing."""
        for address in addresses:
            run("ipset", "test", "bench", address)
        return True

    def bytes(self) -> int:
        listed = run("ipset", "list", "bench", "-terse")
        return int(
            next(line for line in listed.splitlines() if line.startswith("Size in memory")).split(":")[1]
        )

    def unload(self) -> None:
        run("ipset", "destroy", "bench")

    @contextmanager
    def active(self, is_default_drop: bool = False) -> Iterator[None]:
        """`is_default_drop`: a second rule drops what the first left."""
        rules = [self.rule, self.default] if is_default_drop else [self.rule]
        for rule in rules:
            run("iptables", "-t", "raw", "-A", *rule)
        try:
            yield
        finally:
            for rule in rules:
                run("iptables", "-t", "raw", "-D", *rule)

    def dropped(self) -> int:
        listed = run("iptables", "-t", "raw", "-nvxL", "PREROUTING")
        return sum(int(line.split()[0]) for line in listed.splitlines() if " DROP " in line)


class Nftables:
    """A set of plain addresses, with its size told, which gives nft its fastest hash; asked at the netdev hook."""

    name = "nftables netdev"

    def __init__(self, directory: Path) -> None:
        self._path = directory / "set.nft"

    def write(self, addresses: Sequence[str]) -> None:
        size = max(65536, len(addresses) * 5 // 4)
        head = f"table netdev bench {{\nset blocked {{\ntype ipv4_addr; size {size}; elements = {{\n"
        self._path.write_text(head + ",\n".join(addresses) + "\n}\n}\n}\n")

    def load(self) -> float:
        """Seconds."""
        started = time.perf_counter()
        run("nft", "-f", str(self._path))
        return time.perf_counter() - started

    def unload(self) -> None:
        run("nft", "delete", "table", "netdev", "bench")

    @contextmanager
    def active(self, is_default_drop: bool = False) -> Iterator[None]:
        """`is_default_drop`: so is the chain's policy. What comes to it is counted first."""
        policy = "policy drop;" if is_default_drop else ""
        run("nft", "add counter netdev bench dropped")
        run(
            "nft",
            f"add chain netdev bench ingress {{ type filter hook ingress device {GUARDED} priority 0; {policy} }}",
        )
        run("nft", "add rule netdev bench ingress ip saddr @blocked counter name dropped drop")
        if is_default_drop:
            run("nft", "add rule netdev bench ingress counter name dropped")
        try:
            yield
        finally:
            run("nft", "delete chain netdev bench ingress")

    def dropped(self) -> int:
        return nft_counter("bench", "dropped")


def nft_counter(table: str, name: str) -> int:
    """Packets of a named counter, asked by netlink (linux/netfilter/nf_tables.h): nft itself reads every element
    of every set first."""
    attributes = b"".join((_attribute(1, table.encode() + b"\0"), _attribute(2, name.encode() + b"\0"),
                           _attribute(3, struct.pack(">I", _NFT_OBJECT_COUNTER))))  # fmt: skip
    body = struct.pack("=BBH", _NFPROTO_NETDEV, 0, 0) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHII", 16 + len(body), _NFT_MSG_GETOBJ, 1, 1, 0) + body)
        answer = netlink.recv(1 << 16)
    kind = struct.unpack_from("=H", answer, 4)[0]
    if kind == 2:
        raise RuntimeError(f"nftables' counter {name}: errno {-struct.unpack_from('=i', answer, 16)[0]}")
    data = _attributes(_attributes(answer[20:])[4])
    return int.from_bytes(data[2], "big")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(content: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 4 <= len(content):
        length, kind = struct.unpack_from("=HH", content, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = content[at + 4 : at + length]
        at += -(-length // 4) * 4
    return found
