"""How many packets a second get through, or are dropped? Live frames into a veth pair, one CPU for all of it.

The contenders alternate within every round and stand on the same interface. A packet that passes ends in a
blackhole route: that part is the same for all. Each contender's own counters must have seen every packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import address_lists
from benchmarks.driver import FRAMES_MAX, Driver, Frames
from benchmarks.frames import Addresses4, ipv4_frames
from benchmarks.guarded import Guarded
from benchmarks.measure import Answers, Goal, Plan, Row
from benchmarks.peers import Ipset, Nftables, xdp_program
from benchmarks.world import BPFFS, GUARDED, World, on_one_cpu

QUESTION = "throughput"
MILLION = 1_000_000
LEAST_SEEN = 0.999


@dataclass(frozen=True)
class Contender:
    """`active` puts it on the interface, `dropped` reads how many packets it says to have dropped."""

    name: str
    active: Callable[[], AbstractContextManager[None]]
    dropped: Callable[[], int]


def run(world: World, plan: Plan) -> Answers:
    random = np.random.default_rng(5)
    hosts = address_lists.random_hosts(random, MILLION)
    driver = Driver(world.guarded)
    traffic = {
        "hit": ipv4_frames(random.permutation(hosts)[np.arange(FRAMES_MAX) % MILLION]),
        "miss": ipv4_frames(address_lists.hosts_without(random, FRAMES_MAX, hosts)),
    }
    with ExitStack() as stack:
        contenders = [*_bare(driver), _ours(stack, world, hosts), *_peers(stack, world, hosts)]
        rates = _rounds(world, plan, driver, contenders, traffic)
    answers = Answers([Row(QUESTION, name, "Mpps", values, "higher") for name, values in rates.items()])
    _compare(answers)
    return answers


def _nothing() -> int:
    return 0


@contextmanager
def _empty() -> Iterator[None]:
    yield


def _bare(driver: Driver) -> list[Contender]:
    def active(fd: int, name: str) -> Callable[[], AbstractContextManager[None]]:
        return lambda: xdp_program(fd, BPFFS / name)

    return [
        Contender("no program", _empty, _nothing),
        Contender("bare XDP_PASS", active(driver.bare_pass, "bare_pass"), _nothing),
        Contender("bare XDP_DROP", active(driver.bare_drop, "bare_drop"), _xdp_drops),
    ]


def _xdp_drops() -> int:
    """What the driver of the interface says that programs dropped (ethtool statistics of its queue)."""
    from benchmarks.world import run as tool

    lines = (line.split(":") for line in tool("ethtool", "-S", GUARDED).splitlines() if "xdp_drops" in line)
    return sum(int(value) for _, value in lines)


def _ours(stack: ExitStack, world: World, hosts: Addresses4) -> Contender:
    guarded = stack.enter_context(Guarded(world))
    guarded.list_addresses([address_lists.host_columns(hosts)])
    guarded.detach()

    @contextmanager
    def active() -> Iterator[None]:
        guarded.attach()
        try:
            yield
        finally:
            guarded.detach()

    return Contender("ebpf-fw", active, lambda: guarded.counted().get(("drop", "rule"), 0))


def _peers(stack: ExitStack, world: World, hosts: Addresses4) -> Iterator[Contender]:
    texts = address_lists.text(hosts)
    for peer in (Nftables(world.directory), Ipset(world.directory)):
        peer.write(texts)
        peer.load()
        stack.callback(peer.unload)
        yield Contender(peer.name, peer.active, peer.dropped)


def _rounds(
    world: World, plan: Plan, driver: Driver, contenders: list[Contender], traffic: dict[str, Frames]
) -> dict[str, list[float]]:
    """Mpps by contender and traffic."""
    rates: dict[str, list[float]] = {}
    for kind, frames in traffic.items():
        driver.load_frames(frames)
        for _ in range(plan.live_rounds):
            for contender in contenders:
                with contender.active(), on_one_cpu(world):
                    rate = _rate(world, plan, driver, contender, kind)
                rates.setdefault(f"{contender.name}, {kind}", []).append(rate)
    return rates


def _rate(world: World, plan: Plan, driver: Driver, contender: Contender, kind: str) -> float:
    packets = plan.live_packets
    before, received = contender.dropped(), _received()
    driver.send(world.inject, packets // 8)
    driver.rewind()
    seconds = driver.send(world.inject, packets)
    dropped, arrived = contender.dropped() - before, _received() - received
    sent = packets + packets // 8
    assert arrived >= sent * LEAST_SEEN, f"{contender.name}: {arrived} of {sent} packets arrived"
    if contender.dropped is not _nothing:
        is_dropping = kind == "hit" or contender.dropped is _xdp_drops
        expected = sent if is_dropping else 0
        assert abs(dropped - expected) <= sent * (1 - LEAST_SEEN), (
            f"{contender.name}, {kind}: {dropped} of {sent} dropped"
        )
    return packets / seconds / 1e6


def _received() -> int:
    return int(Path(f"/sys/class/net/{GUARDED}/statistics/rx_packets").read_text())


def _compare(answers: Answers) -> None:
    rows = {row.name: row for row in answers.rows}
    passing, bare = rows["ebpf-fw, miss"], rows["bare XDP_PASS, miss"]
    name = "1M addresses, passing: rate / bare XDP_PASS"
    answers.goals.append(
        Goal(name, passing.best / bare.best, 0.8, "×", at_most=False, rests_on=(passing, bare))
    )
    dropping = rows["ebpf-fw, hit"]
    for peer, limit in ((Nftables.name, 3.0), (Ipset.name, 3.5)):
        other = rows[f"{peer}, hit"]
        name = f"1M addresses, dropping: rate / {peer}"
        ratio = dropping.best / other.best
        answers.goals.append(Goal(name, ratio, limit, "×", at_most=False, rests_on=(dropping, other)))
