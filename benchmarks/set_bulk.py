"""How long does a set of a million addresses take that a rule names, and what does it do when all of it expires?

A set is filled, replaced by a million others, killed with the service and started again, and at last all of its entries
expire in the same second while somebody else changes rules. `ipset restore`, and what its users do to replace a set,
`restore` into a second one and `swap`, run beside.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks import address_lists
from benchmarks.bulk import entries_in_kernel
from benchmarks.driver import XDP_DROP, run_program
from benchmarks.frames import Addresses4, ipv4_frames
from benchmarks.http_client import encoded
from benchmarks.measure import Answers, Goal, Plan, Row, percentile
from benchmarks.peers import Ipset, program_on
from benchmarks.service import Service
from benchmarks.world import GUARDED, World
from firewall.rule import parse_time

QUESTION = "sets"
NAME = "blocked"
SETTLED_S = 30.0  # within which the table holds nothing but the entries, else something is wrong
SAMPLES = 500  # of the entries, that packets are tried with
PAUSE_S = 0.02  # between tries of all of them: the processor is for the service
LEFT_S = 3.0  # of the life of what expires, when it is looked at first


def run(world: World, plan: Plan) -> Answers:
    size = plan.set_entries
    hosts = address_lists.random_hosts(np.random.default_rng(17), 2 * size)
    one, other = hosts[:size], hosts[size:]
    bodies = ["\n".join(address_lists.text(each)).encode() for each in (one, other)]
    times: dict[str, list[float]] = {}
    peer = Ipset(world.directory)
    answers = Answers()
    for number in range(plan.bulk_rounds):
        _peer_round(peer, one, other, times)
        with Service(world, f"sets-{number}", 1 << 20) as service:
            _prepare(service)
            service.forget_peak()
            steps = (
                ("POST import", bodies[0], "add", one, other),
                ("replace, during which the table grows", bodies[1], "replace", other, one),
                ("replace", bodies[0], "replace", one, other),
            )
            for name, body, mode, listed, others in steps:
                _timed(service, name, body, mode, times)
                _assert_in_force(service, listed, others)
            if number == plan.bulk_rounds - 1:
                _memory(answers, service)
                _restart(answers, service, one, other)
                _expire(answers, service, bodies[0], one)
    rows = {name: Row(QUESTION, f"{size:,} entries: {name}", "s", seconds) for name, seconds in times.items()}
    for row in rows.values():
        answers.add(row)
    for ours, theirs in (("POST import", "ipset restore"), ("replace", "ipset restore and swap")):
        goal = f"{size:,} entries of a set: seconds {ours} / {theirs}"
        ratio = rows[ours].best / rows[theirs].best
        answers.goals.append(Goal(goal, ratio, 1.5, "×", rests_on=(rows[ours], rows[theirs])))
    return answers


def _peer_round(peer: Ipset, one: Addresses4, other: Addresses4, times: dict[str, list[float]]) -> None:
    peer.write(address_lists.text(one))
    _note(times, "ipset restore", peer.load(), peer.cpu_s)
    peer.write(address_lists.text(other), "second")
    _note(times, "ipset restore and swap", peer.load_and_swap("second"), peer.cpu_s)
    assert peer.holds(address_lists.text(other[:: len(other) // 20]))
    peer.unload()


def _note(times: dict[str, list[float]], name: str, seconds: float, cpu_s: float) -> None:
    times.setdefault(name, []).append(seconds)
    times.setdefault(f"{name}, of it on a CPU", []).append(cpu_s)


def _prepare(service: Service) -> None:
    """A rule that names the set, and one of somebody else."""
    with service.connect() as connection:
        for method, path, body in (
            ("PUT", f"/v1/sets/{NAME}", {}),
            ("POST", "/v1/rules", {"id": "by-set", "sources": [f"@{NAME}"]}),
            ("POST", "/v1/rules", {"id": "somebody-else", "sources": ["192.0.2.77"]}),
        ):
            answer = connection.request(method, path, json.dumps(body).encode())
            assert answer.status in (200, 201), answer


def _timed(service: Service, name: str, body: bytes, mode: str, times: dict[str, list[float]]) -> None:
    with service.connect() as connection:
        cpu_s, started = service.cpu_s(), time.perf_counter()
        answer = connection.request("POST", f"/v1/sets/{NAME}/import?mode={mode}", body, "text/plain")
        seconds = time.perf_counter() - started
    assert answer.status == 200 and answer.json()["added"] == body.count(b"\n") + 1, answer
    _note(times, name, seconds, service.cpu_s() - cpu_s)


def _assert_in_force(service: Service, listed: Addresses4, others: Addresses4) -> None:
    """At once for packets, and soon in the table: what only packets of before could need goes after them."""
    probes = Probes()
    try:
        assert all(map(probes.drops, _some(listed))), "an entry does not drop"
        assert not any(map(probes.drops, _some(others))), "an entry that is not in the set drops"
    finally:
        probes.close()
    _wait_for_entries(service, len(listed))


def _wait_for_entries(service: Service, count: int) -> None:
    """Beside somebody else's rule."""
    deadline = time.monotonic() + SETTLED_S
    while (found := entries_in_kernel(service)) != count + 1:
        assert time.monotonic() < deadline, f"{found} entries"
        time.sleep(0.05)


def _some(hosts: Addresses4) -> list[int]:
    return [int(host) for host in hosts[:: max(1, len(hosts) // SAMPLES)]]


class Probes:
    """Tries packets on the program that stands on the interface."""

    def __init__(self) -> None:
        self._program = program_on(GUARDED)

    def close(self) -> None:
        os.close(self._program)

    def drops(self, host: int) -> bool:
        frame = ipv4_frames(np.array([host], np.uint32))[0].tobytes()
        return run_program(self._program, frame, 1).verdict == XDP_DROP


def _memory(answers: Answers, service: Service) -> None:
    """`afterwards` once the service has given back what it needed for the changes: it looks every two seconds."""
    peak = service.memory_mb("VmHWM")
    time.sleep(5)
    after = service.memory_mb("VmRSS")
    answers.add(Row(QUESTION, "service's memory, at most during import and replaces", "MB", [peak]))
    answers.add(Row(QUESTION, "service's memory, five seconds afterwards", "MB", [after]))
    answers.goals.append(Goal("service's memory during changes of a large set", peak, 600, "MB"))
    answers.goals.append(Goal("service's memory with a large set afterwards", after, 250, "MB"))


def _restart(answers: Answers, service: Service, listed: Addresses4, others: Addresses4) -> None:
    """SIGKILL, then a start: until ready, and every time that it is asked the interface must filter."""
    probes, checks = Probes(), 0
    try:
        service.kill()
        started = time.perf_counter()
        service.launch()
        while not service.is_ready():
            assert probes.drops(int(listed[checks % len(listed)])), "the interface did not filter"
            checks += 1
            time.sleep(0.005)
        seconds = time.perf_counter() - started
    finally:
        probes.close()
    _assert_in_force(service, listed, others)
    note = f"SIGKILL before; filtering at each of {checks} checks meanwhile"
    answers.add(Row(QUESTION, "restart with the set: ready after", "s", [seconds], note=note))
    answers.goals.append(Goal(f"restart with {len(listed):,} entries in a set: ready", seconds, 5, "s"))


# -- expiry


@dataclass
class _Seen:
    """`passed_at`: of each sample the moment from which its packets passed, by its place."""

    passed_at: dict[int, float] = field(default_factory=dict)
    tries: int = 0
    wrong: list[str] = field(default_factory=list)


class _Watching(threading.Thread):
    """Tries packets over and over: those of samples until they pass, and of two hosts that nothing may happen to."""

    def __init__(self, samples: Sequence[int], kept: int, free: int, due: float) -> None:
        super().__init__(name="probes")
        self.seen = _Seen()
        self.stopping = threading.Event()
        self._samples, self._kept, self._free, self._due = samples, kept, free, due

    def run(self) -> None:
        probes = Probes()
        left = dict(enumerate(self._samples))
        while not self.stopping.is_set():
            self._try(probes, "somebody else's host passed", self._kept, True)
            self._try(probes, "a host that is not listed was dropped", self._free, False)
            for place, host in list(left.items()):
                if not probes.drops(host):
                    self.seen.passed_at[place] = time.time()
                    del left[place]
                    if time.time() < self._due:
                        self.seen.wrong.append("an entry went before its time")
                self.seen.tries += 1
            self.stopping.wait(PAUSE_S)
        probes.close()

    def _try(self, probes: Probes, fault: str, host: int, is_dropped: bool) -> None:
        if probes.drops(host) != is_dropped:
            self.seen.wrong.append(fault)


def _expire(answers: Answers, service: Service, body: bytes, hosts: Addresses4) -> None:
    due = _renew(service, body)
    free = int(address_lists.hosts_without(np.random.default_rng(3), 1, hosts)[0])
    watching = _Watching(_some(hosts), 0xC000024D, free, due)
    while time.time() < due - LEFT_S / 3:
        time.sleep(0.01)
    cpu_s = service.cpu_s()
    watching.start()
    took = _change_until_gone(service, due)
    gone_s, cpu_s = time.time() - due, service.cpu_s() - cpu_s
    _wait_until_all_pass(watching)
    seen = watching.seen
    assert not seen.wrong, seen.wrong[:10]
    _wait_for_entries(service, 0)
    last_s = max(seen.passed_at.values()) - due
    note = f"at most; {len(_some(hosts))} entries tried, {seen.tries:,} packets"
    answers.add(Row(QUESTION, "all expire in one second: none matches after", "s", [last_s], note=note))
    note = f"{cpu_s:.1f} s of it on a CPU, the others' changes too"
    answers.add(Row(QUESTION, "all expire in one second: gone after", "s", [gone_s], note=note))
    what = f"{len(hosts):,} expire in one second"
    p99, longest = percentile(took, 0.99), max(took)
    note = f"of {len(took)}"
    answers.add(Row(QUESTION, "another's change meanwhile, p99", "ms", [p99], note=note))
    answers.add(Row(QUESTION, "another's change meanwhile, longest", "ms", [longest], note=note))
    answers.goals.append(Goal(f"{what}: gone", gone_s, 5, "s"))
    answers.goals.append(Goal(f"{what}: longest other change", longest, 100, "ms"))


def _renew(service: Service, body: bytes) -> float:
    """Gives all entries the same end, seconds from now; when that is."""
    ttl_s = 5
    while True:
        path = f"/v1/sets/{NAME}/import?mode=replace&ttl={ttl_s}"
        with service.connect() as connection:
            answer = connection.request("POST", path, body, "text/plain")
            assert answer.status == 200, answer
        with service.connect() as connection:
            listed = connection.request("GET", f"/v1/sets/{NAME}/entries?page_size=1").json()["items"]
        due = parse_time(listed[0]["expires_at"]) if listed else 0.0
        if due - time.time() > LEFT_S:
            return due
        ttl_s *= 2


def _change_until_gone(service: Service, due: float) -> list[float]:
    """Adds and deletes a rule of somebody else's; ms of each change from the moment on."""
    add = encoded("POST", "/v1/rules", json.dumps({"id": "one", "sources": ["192.0.2.78"]}).encode())
    delete = encoded("DELETE", "/v1/rules/one")
    took: list[float] = []
    while True:
        for request, status in ((add, 201), (delete, 204)):
            with service.connect() as connection:
                started = time.perf_counter()
                answer = connection.exchange(request)
                milliseconds = (time.perf_counter() - started) * 1000
            assert answer.status == status, answer
            if time.time() > due:
                took.append(milliseconds)
        with service.connect() as connection:
            entries = connection.request("GET", f"/v1/sets/{NAME}").json()["entries"]
        if not entries and took:
            return took


def _wait_until_all_pass(watching: _Watching) -> None:
    deadline = time.monotonic() + SETTLED_S
    while len(watching.seen.passed_at) < len(watching._samples) and time.monotonic() < deadline:
        time.sleep(0.05)
    watching.stopping.set()
    watching.join()
    assert len(watching.seen.passed_at) == len(watching._samples), "an expired entry still drops"
