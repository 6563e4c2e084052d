"""How many packets a second get through, or are dropped? Live frames into a veth pair, one CPU for all of it.

The contenders alternate within every round and stand on the same interface. A packet that passes ends in a
blackhole route: that part is the same for all. Each contender's own counters must have seen every packet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import address_lists
from benchmarks.driver import FRAMES_MAX, Driver, Frames
from benchmarks.frames import Addresses4, ipv4_frames
from benchmarks.guarded import Guarded
from benchmarks.measure import Answers, Goal, Plan, Row
from benchmarks.peers import Ipset, Nftables, xdp_program
from benchmarks.world import BPFFS, GUARDED, World, on_one_cpu
from firewall.listener import Wanted

QUESTION = "throughput"
MILLION = 1_000_000
LEAST_SEEN = 0.999


HIT, MISS, DEFAULT = "hit", "miss", "dropped by default"
OURS, LISTENED_TO = "ebpf-fw", "ebpf-fw, one listens to events"


@dataclass(frozen=True)
class Contender:
    """`active` puts it on the interface, `dropped` reads how many packets it says to have dropped; `drops`: the
    traffic of which it drops all."""

    name: str
    active: Callable[[], AbstractContextManager[None]]
    dropped: Callable[[], int]
    drops: tuple[str, ...] = (HIT,)


def run(world: World, plan: Plan) -> Answers:
    random = np.random.default_rng(5)
    hosts = address_lists.random_hosts(random, MILLION)
    driver = Driver(world.guarded)
    listed = ipv4_frames(random.permutation(hosts)[np.arange(FRAMES_MAX) % MILLION])
    others = ipv4_frames(address_lists.hosts_without(random, FRAMES_MAX, hosts))
    with ExitStack() as stack:
        bare, drop = _bare(driver), _bare_drop(driver)
        peers = _loaded_peers(stack, world, hosts)
        contenders = [*bare, drop, *_ours(stack, world, hosts), *_peers(peers, False)]
        rates = _rounds(world, plan, driver, contenders, {HIT: listed, MISS: others})
        contenders = [drop, *_ours(stack, world, hosts, is_default_drop=True), *_peers(peers, True)]
        rates |= _rounds(world, plan, driver, contenders, {DEFAULT: others})
    answers = Answers([Row(QUESTION, name, "Mpps", values, "higher") for name, values in rates.items()])
    _compare(answers)
    return answers


def _nothing() -> int:
    return 0


@contextmanager
def _empty() -> Iterator[None]:
    yield


def _bare(driver: Driver) -> list[Contender]:
    def active() -> AbstractContextManager[None]:
        return xdp_program(driver.bare_pass, BPFFS / "bare_pass")

    return [Contender("no program", _empty, _nothing), Contender("bare XDP_PASS", active, _nothing)]


def _bare_drop(driver: Driver) -> Contender:
    def active() -> AbstractContextManager[None]:
        return xdp_program(driver.bare_drop, BPFFS / "bare_drop")

    return Contender("bare XDP_DROP", active, _xdp_drops, (HIT, MISS, DEFAULT))


def _xdp_drops() -> int:
    """What the driver of the interface says that programs dropped (ethtool statistics of its queue)."""
    from benchmarks.world import run as tool

    lines = (line.split(":") for line in tool("ethtool", "-S", GUARDED).splitlines() if "xdp_drops" in line)
    return sum(int(value) for _, value in lines)


def _ours(
    stack: ExitStack, world: World, hosts: Addresses4, is_default_drop: bool = False
) -> list[Contender]:
    """Alone, and with one who listens to events: in this process, but not on the CPU that packets are measured on."""
    guarded = stack.enter_context(Guarded(world, default="drop" if is_default_drop else "allow"))
    guarded.list_addresses([address_lists.host_columns(hosts)])
    guarded.detach()

    @contextmanager
    def active() -> Iterator[None]:
        guarded.attach()
        try:
            yield
        finally:
            guarded.detach()

    @contextmanager
    def active_with_listener() -> Iterator[None]:
        with active(), _listener(guarded):
            yield

    counted, traffic = (("drop", "default"), DEFAULT) if is_default_drop else (("drop", "rule"), HIT)

    def dropped() -> int:
        return guarded.counted().get(counted, 0)

    return [
        Contender(OURS, active, dropped, (traffic,)),
        Contender(LISTENED_TO, active_with_listener, dropped, (traffic,)),
    ]


@contextmanager
def _listener(guarded: Guarded) -> Iterator[None]:
    """Takes events and makes JSON of them, as the API does."""
    there_is = threading.Event()
    listener = guarded.enforcer.reporting.listen(Wanted(), there_is.set)

    def read() -> None:
        while True:
            there_is.wait()
            there_is.clear()
            taken = listener.take(256)
            for report in taken.reports:
                _ = report.json
            if taken.is_over:
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        guarded.enforcer.reporting.leave(listener)
        while listener.take(256).reports:
            pass
        listener.end()
        reader.join()


def _loaded_peers(stack: ExitStack, world: World, hosts: Addresses4) -> list[Nftables | Ipset]:
    texts = address_lists.text(hosts)
    peers: list[Nftables | Ipset] = [Nftables(world.directory), Ipset(world.directory)]
    for peer in peers:
        peer.write(texts)
        peer.load()
        stack.callback(peer.unload)
    return peers


def _peers(peers: Sequence[Nftables | Ipset], is_default_drop: bool) -> Iterator[Contender]:
    for peer in peers:
        drops = DEFAULT if is_default_drop else HIT
        yield Contender(peer.name, partial(peer.active, is_default_drop), peer.dropped, (drops,))


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
        expected = sent if kind in contender.drops else 0
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
    for kind, what in ((HIT, "dropping"), (DEFAULT, DEFAULT)):
        alone, told = rows[f"{OURS}, {kind}"], rows[f"{LISTENED_TO}, {kind}"]
        name = f"1M addresses, {what}: rate with one who listens / without"
        answers.goals.append(
            Goal(name, told.best / alone.best, 0.9, "×", at_most=False, rests_on=(told, alone))
        )
        dropping = rows[f"ebpf-fw, {kind}"]
        for peer, limit in ((Nftables.name, 3.0), (Ipset.name, 3.5)):
            other = rows[f"{peer}, {kind}"]
            name = f"1M addresses, {what}: rate / {peer}"
            ratio = dropping.best / other.best
            answers.goals.append(Goal(name, ratio, limit, "×", at_most=False, rests_on=(dropping, other)))
