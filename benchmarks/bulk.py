"""How long does a list of a million addresses take, and what memory? Ours over the API, `ipset restore`, `nft -f`.

The service's answer means durable and in the kernel: the entries of the map are counted then, a listed source is
tried, and the service is killed and started again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from benchmarks import address_lists
from benchmarks.driver import XDP_DROP, run_program
from benchmarks.frames import Addresses4, ipv4_frames
from benchmarks.measure import Answers, Goal, Plan, Row
from benchmarks.peers import Ipset, Nftables, program_on
from benchmarks.service import Service
from benchmarks.world import GUARDED, World
from firewall.kernel import bpf
from firewall.kernel.bpf import Map
from firewall.layout import ADDRESS_ENTRY, FRONT_ROW, PREFIX4

QUESTION = "bulk"
MILLION = 1_000_000
ADDRESS_MAPS = ("address4", "address_filter", "address_front")


def run(world: World, plan: Plan) -> Answers:
    hosts = address_lists.random_hosts(np.random.default_rng(7), MILLION)
    texts = address_lists.text(hosts)
    body = "\n".join(texts).encode()
    answers, ours = Answers(), list[float]()
    peers = (Ipset(world.directory), Nftables(world.directory))
    times: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for peer in peers:
        peer.write(texts)
    for number in range(plan.bulk_rounds):
        for peer in peers:
            times[peer.name].append(peer.load())
            # nft takes 20 s to answer anything about a large set; that it holds them, throughput.py shows.
            if isinstance(peer, Ipset):
                assert peer.holds(texts[:: MILLION // 20])
            peer.unload()
        is_last = number == plan.bulk_rounds - 1
        with Service(world, f"bulk-{number}", 1 << 20) as service:
            ours.append(_import(service, body))
            _assert_in_kernel(service, hosts)
            if is_last:
                _measure_memory(answers, service)
                _restart(answers, service, hosts)
    row = answers.add(Row(QUESTION, "1,000,000 addresses: POST /v1/rules/import", "s", ours))
    restore = answers.add(Row(QUESTION, "1,000,000 addresses: ipset restore", "s", times[Ipset.name]))
    answers.add(Row(QUESTION, "1,000,000 addresses: nft -f", "s", times[Nftables.name]))
    ratio = row.best / restore.best
    name = "1M addresses: seconds ours / ipset restore"
    answers.goals.append(Goal(name, ratio, 1.5, "×", rests_on=(row, restore)))
    return answers


def _import(service: Service, body: bytes) -> float:
    """Seconds until the answer."""
    service.forget_peak()
    with service.connect() as connection:
        started = time.perf_counter()
        answer = connection.request("POST", "/v1/rules/import", body, "text/plain")
        seconds = time.perf_counter() - started
    assert answer.status == 200 and answer.json()["added"] == MILLION, answer
    return seconds


def entries_in_kernel(service: Service) -> int:
    """Of the IPv4 table, also those that no packet meets any more."""
    entries = Map.pinned(service.pin_root / "maps" / "address4")
    found = sum(len(keys) for keys, _ in entries.dump(PREFIX4, ADDRESS_ENTRY))
    entries.close()
    front = Map.pinned(service.pin_root / "maps" / "address_front")
    found += int(np.count_nonzero(front.mapped(FRONT_ROW)["key"]))
    front.close()
    return found


def _assert_in_kernel(service: Service, hosts: Addresses4) -> None:
    found = entries_in_kernel(service)
    assert found == MILLION, f"{found} entries"
    assert all(_drops(host) for host in hosts[:: MILLION // 100])


def _drops(host: int) -> bool:
    """Whether the program that stands on the interface drops this source."""
    fd = program_on(GUARDED)
    try:
        return run_program(fd, ipv4_frames(np.array([host], np.uint32))[0].tobytes(), 1).verdict == XDP_DROP
    finally:
        os.close(fd)


def _measure_memory(answers: Answers, service: Service) -> None:
    peak, after = service.memory_mb("VmHWM"), service.memory_mb("VmRSS")
    answers.add(Row(QUESTION, "service's memory, at most during the import", "MB", [peak]))
    answers.add(Row(QUESTION, "service's memory afterwards", "MB", [after]))
    answers.goals.append(Goal("service's memory during the import", peak, 600, "MB"))
    answers.goals.append(Goal("service's memory afterwards", after, 250, "MB"))
    by_map = {name: memlock(service.pin_root / "maps" / name) / MILLION for name in ADDRESS_MAPS}
    note = ", ".join(f"{name} {value:.0f}" for name, value in by_map.items())
    answers.add(Row(QUESTION, "kernel memory an address", "B", [sum(by_map.values())], note=note))
    answers.goals.append(Goal("kernel memory an address", sum(by_map.values()), 130, "B"))


def memlock(pin: Path) -> int:
    """Bytes that the kernel says a map takes (/proc/self/fdinfo)."""
    fd = bpf.get(pin)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    return int(next(line for line in lines if line.startswith("memlock")).split()[1])


def _restart(answers: Answers, service: Service, hosts: Addresses4) -> None:
    """SIGKILL, then a start: until ready, and every time that it is asked the interface must filter."""
    service.kill()
    checks = 0
    started = time.perf_counter()
    service.launch()
    while not service.is_ready():
        assert _drops(hosts[checks % MILLION]), "the interface did not filter during the restart"
        checks += 1
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    _assert_in_kernel(service, hosts)
    note = f"SIGKILL before; filtering at each of {checks} checks meanwhile"
    answers.add(Row(QUESTION, "restart with 1,000,000 addresses: ready after", "s", [seconds], note=note))
    answers.goals.append(Goal("restart with 1M addresses: ready", seconds, 5, "s"))
