"""Hours in minutes: changes, readers and a flood at once, while the service is killed and started over and over.

SOAK_MINUTES says how long (`make soak MINUTES=60`). At the end memory and descriptors are where they were, and the
store, the maps and the oracle agree.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from firewall.kernel import bpf
from firewall.kernel.keys import PREFIX
from firewall.layout import ADDRESS_ENTRY, FRONT_ROW, RANK_NONE
from tests import oracle
from tests.netns.soak import Churn, Failures, Readers, normal
from tests.netns.topology import wait_until
from tests.netns.traffic import ethernet, frame, ip, udp_to
from tests.netns.world import World
from tests.random_rules import random_frame

MINUTES = float(os.environ.get("SOAK_MINUTES", "1.5"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
LISTED = "203.0.113.250"
PERMANENT = {"listed": {"id": "listed", "priority": 0, "sources": [LISTED]}}
FRAMES = 150  # that the oracle judges at every look
# How much memory may grow in the quiet half, beyond what one sample differs from the next: allocators keep pages.
GROWTH_BYTES = 6 << 20
PROGRAMS = {"ingress": "fw_xdp_ethernet", "egress": "fw_tc_ethernet"}
DROPPED = {"ingress": 1, "egress": 2}


def client_of(world: World) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(world.daemon.socket))
    return httpx.Client(transport=transport, base_url="http://ebpf-fw", timeout=60)


def memory_bytes(world: World) -> int:
    """Of the process's own, without what it shares with its maps."""
    text = Path(f"/proc/{world.daemon.pid}/smaps_rollup").read_text(encoding="ascii")
    fields = dict(line.split(":") for line in text.splitlines()[1:])
    return int(fields["Pss_Anon"].split()[0]) * 1024


def descriptors(world: World) -> int:
    return len(list(Path(f"/proc/{world.daemon.pid}/fd").iterdir()))


def entries(world: World) -> dict[int, set[bytes]]:
    """The prefixes of the address tables with the rank that packets see, by IP version."""
    found: dict[int, set[bytes]] = {}
    for version in (4, 6):
        table = bpf.Map.pinned(world.daemon.pin_root / f"maps/address{version}")
        rows: set[bytes] = set()
        for keys, values in table.dump(PREFIX[version], ADDRESS_ENTRY):
            rows |= {
                key.tobytes() + int(rank).to_bytes(4, "big")
                for key, rank in zip(keys, values["rank"], strict=True)
            }
        table.close()
        found[version] = rows
    for name in ("address_front", "address_rows0", "address_rows1"):
        table = bpf.Map.pinned(world.daemon.pin_root / "maps" / name)
        count = table.info.max_entries * table.info.value_size // FRONT_ROW.itemsize
        front = table.mapped_part(FRONT_ROW, 0, count)
        in_use = front[front["key"] != 0]
        found[4] |= {
            key.tobytes() + int(rank).to_bytes(4, "big")
            for key, rank in zip(in_use["key"], in_use["entry"]["rank"], strict=True)
        }
        table.close()
    return found


def gone(world: World) -> bool:
    return any(row.endswith(RANK_NONE.to_bytes(4, "big")) for rows in entries(world).values() for row in rows)


def pins(world: World) -> list[str]:
    root = world.daemon.pin_root
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@contextmanager
def descriptor(path: Path) -> Iterator[int]:
    fd = bpf.get(path)
    try:
        yield fd
    finally:
        os.close(fd)


def assert_as_the_oracle(world: World, churn: Churn, rng: random.Random) -> None:
    """What the kernel's programs do with random frames is what the acknowledged rules say."""
    rules = list(churn.model.values())
    for hook, name in PROGRAMS.items():
        with descriptor(world.daemon.pin_root / "programs" / name) as fd:
            for _ in range(FRAMES):
                content = random_frame(rng)
                if len(content) < 60:  # test runs refuse an IP type before less than an IP header
                    content = content.ljust(60, b"\0")
                expected = oracle.judge(rules, content, direction=hook, interface="fw0")
                verdict, _, _ = bpf.test_run(fd, content)
                dropped = verdict == DROPPED[hook]
                assert dropped == (expected.verdict == "drop"), (
                    f"{hook} {content.hex()}: {expected}, got {verdict}"
                )


def look(world: World, churn: Churn, rng: random.Random) -> None:
    with churn.lock:
        churn.settle()
        assert_as_the_oracle(world, churn, rng)


def end_and_start(world: World, rng: random.Random) -> None:
    """Kills the service, mostly; at times in the middle of its start as well."""
    daemon = world.daemon
    daemon.signal(signal.SIGKILL)
    if rng.random() < 0.3:
        daemon.launch()
        time.sleep(rng.random() * 2)
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.signal(signal.SIGKILL)
        daemon.process = None
    daemon.start()


def survive(world: World, churn: Churn, failures: Failures, until: float, rng: random.Random) -> int:
    """The first half: no frame of a listed source passes, however often the service is killed."""
    crafted = bytes(ethernet(world) / ip(world, src=LISTED) / udp_to(4999))
    ends = 0
    while ends == 0 or time.monotonic() < until:
        with world.flood(crafted) as flood:
            time.sleep(1 + 3 * rng.random())
            end_and_start(world, rng)
            look(world, churn, rng)
        failures.check()
        assert flood.sent > 20 and not flood.passed, f"a listed frame passed after end {ends}"
        ends += 1
    return ends


def endure(world: World, churn: Churn, failures: Failures, until: float, rng: random.Random) -> list[int]:
    """The second half: one process, whose memory is looked at between changes."""
    samples: list[int] = []
    while len(samples) < 12 or time.monotonic() < until:
        time.sleep(max(0.5, MINUTES * 60 / 200))
        look(world, churn, rng)
        with churn.lock:
            samples.append(memory_bytes(world))
        failures.check()
    return samples


def test_soak(world: World) -> None:
    rng, failures = random.Random(SEED), Failures()
    started = time.monotonic()
    crafted = ethernet(world) / ip(world, src=LISTED) / udp_to(4999)
    assert frame(world, crafted).passes()
    assert world.api.post("/v1/rules", json=PERMANENT["listed"]).status_code == 201
    churn = Churn(client_of(world), failures, SEED, PERMANENT)
    readers = Readers(lambda: client_of(world), failures)
    ends = survive(world, churn, failures, started + MINUTES * 30, rng)
    before = descriptors(world)
    samples = endure(world, churn, failures, started + MINUTES * 60, rng)
    readers.stop()
    churn.stop()
    failures.check()
    look(world, churn, rng)
    print(
        f"{churn.changes:,} changes, {readers.reads:,} reads, {ends} ends in {time.monotonic() - started:.0f} s; "
        f"memory {min(samples) / 1e6:.1f} to {max(samples) / 1e6:.1f} MB, descriptors {before} to {descriptors(world)}"
    )
    assert_flat(samples)
    assert descriptors(world) <= before + 4, "descriptors grew"
    assert_a_fresh_start_finds_nothing_to_mend(world, churn)


def assert_flat(samples: list[int]) -> None:
    """The last third beside the middle one; the first is warming up."""
    third = len(samples) // 3
    middle, last = statistics.median(samples[third : 2 * third]), statistics.median(samples[2 * third :])
    assert last - middle < GROWTH_BYTES, (
        f"memory grew from {middle / 1e6:.1f} to {last / 1e6:.1f} MB: {samples}"
    )


def assert_a_fresh_start_finds_nothing_to_mend(world: World, churn: Churn) -> None:
    """A start compares the maps with the store and mends what differs: if they are the same after it, none did."""
    # Entries that no packet needs any more go a moment after their change.
    wait_until(lambda: not gone(world), "deleted entries are removed", 30)
    kept, pinned = entries(world), pins(world)
    world.kill9()
    world.daemon.start()
    assert entries(world) == kept
    assert pins(world) == pinned
    churn.settle()
    # The maps hold nothing of rules that went.
    churn.model = {"listed": normal(PERMANENT["listed"])}
    assert world.api.put("/v1/ruleset", json={"rules": list(PERMANENT.values())}).status_code == 200
    churn.settle()
    wait_until(lambda: [len(rows) for rows in entries(world).values()] == [1, 0], "one entry is left", 30)
