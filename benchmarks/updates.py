"""How long does one rule take, over HTTP, while a million addresses and 4,096 policy rules are in force?

Every add and delete is answered when it is durable and in the kernel. A write of the disk that the state is on is
measured beside, because durability cannot be faster than that.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import address_lists
from benchmarks.http_client import Connection, encoded
from benchmarks.measure import Answers, Goal, Plan, Row, percentile
from benchmarks.policies import FIRST_PRIORITY, SHAPES, policy_set
from benchmarks.service import Service
from benchmarks.world import World

QUESTION = "updates"
MILLION = 1_000_000
POLICY_RULES = 4096
CLIENTS = 8
GROWTH_BATCH = 8000  # more than a table for a million has room for
FSYNCS = 200


def run(world: World, plan: Plan) -> Answers:
    random = np.random.default_rng(11)
    hosts = address_lists.random_hosts(
        random, MILLION + plan.address_changes + CLIENTS * plan.concurrent_adds + GROWTH_BATCH
    )
    listed, spare = hosts[:MILLION], address_lists.text(hosts[MILLION:])
    answers = Answers()
    answers.add(
        Row(QUESTION, "fsync of the disk, p50", "ms", [_fsync_ms(world.directory)], note="4 KiB appended")
    )
    with Service(world, "updates", 1 << 21) as service:
        with service.connect() as connection:
            _fill(connection, "\n".join(address_lists.text(listed)).encode(), random)
            alone = [_address_rule(f"one-{at}", spare[at]) for at in range(plan.address_changes)]
            _latencies(answers, connection, "address rule", alone, 10)
            extra = [_policy_rule(at) for at in range(plan.policy_changes)]
            _latencies(answers, connection, "policy rule", extra, 30)
        _adds_a_second(answers, service, plan, spare[plan.address_changes :])
        with service.connect() as connection:
            _growth(answers, connection, spare[-GROWTH_BATCH:])
    return answers


def _growth(answers: Answers, connection: Connection, addresses: Sequence[str]) -> None:
    """What all changes wait for when the table of a million addresses becomes one of two million."""
    batch = {"add": [_address_rule(f"growth-{at}", address) for at, address in enumerate(addresses)]}
    took = _timed_ms(connection, encoded("POST", "/v1/rules/batch", json.dumps(batch).encode()), 200)
    name = f"batch of {len(addresses):,} during which the table doubles"
    answers.add(Row(QUESTION, name, "ms", [took]))


def _fill(connection: Connection, addresses: bytes, random: np.random.Generator) -> None:
    answer = connection.request("POST", "/v1/rules/import", addresses, "text/plain")
    assert answer.status == 200, answer
    rules = policy_set(random, SHAPES["acl"], POLICY_RULES).rule_fields()
    answer = connection.request("POST", "/v1/rules/batch", json.dumps({"add": rules}).encode())
    assert answer.status == 200, answer
    status = connection.request("GET", "/v1/status").json()
    used = {each["name"]: each["used"] for each in status["maps"]}
    assert used["address4"] == MILLION and used["policy_rules"] == POLICY_RULES, used


def _address_rule(name: str, address: str) -> dict[str, object]:
    return {"id": name, "sources": [address]}


def _policy_rule(number: int) -> dict[str, object]:
    """Spread over the priorities, so that bits move as they do where an operator inserts a rule."""
    return {
        "id": f"extra-{number}",
        "priority": FIRST_PRIORITY + number * 37 % POLICY_RULES,
        "sources": [f"203.0.113.{number % 256}"],
        "protocols": ["tcp"],
        "destination_ports": [str(1024 + number)],
    }


def _latencies(
    answers: Answers, connection: Connection, what: str, rules: Sequence[dict[str, object]], goal_ms: float
) -> None:
    """One after the other: all adds, then all deletes."""
    adds = [(encoded("POST", "/v1/rules", json.dumps(rule).encode()), 201) for rule in rules]
    deletes = [(encoded("DELETE", f"/v1/rules/{rule['id']}"), 204) for rule in rules]
    for name, requests in (("add", adds), ("delete", deletes)):
        took = [_timed_ms(connection, request, status) for request, status in requests]
        p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
        answers.add(Row(QUESTION, f"{name} one {what}, p50", "ms", [p50]))
        answers.add(
            Row(
                QUESTION,
                f"{name} one {what}, p99",
                "ms",
                [p99],
                note=f"of {len(took)}; longest {max(took):.1f}",
            )
        )
        answers.goals.append(Goal(f"{name} one {what}: p99", p99, goal_ms, "ms"))


def _timed_ms(connection: Connection, request: bytes, status: int) -> float:
    started = time.perf_counter()
    answer = connection.exchange(request)
    took = (time.perf_counter() - started) * 1000
    assert answer.status == status, answer
    return took


def _adds_a_second(answers: Answers, service: Service, plan: Plan, spare: Sequence[str]) -> None:
    """Address rules by clients that each wait for their answer."""
    each = plan.concurrent_adds
    requests = [
        [
            encoded(
                "POST",
                "/v1/rules",
                json.dumps(_address_rule(f"c{client}-{at}", spare[client * each + at])).encode(),
            )
            for at in range(each)
        ]
        for client in range(CLIENTS)
    ]
    seconds = _all_at_once([lambda mine=mine: _add_all(service, mine) for mine in requests])  # type: ignore[misc]
    with service.connect() as connection:
        last = connection.request("GET", f"/v1/rules/c{CLIENTS - 1}-{each - 1}")
        assert last.status == 200, last
    rate = CLIENTS * each / seconds
    answers.add(
        Row(
            QUESTION,
            f"single adds with {CLIENTS} clients",
            "1/s",
            [rate],
            "higher",
            note=f"{CLIENTS * each} rules",
        )
    )
    answers.goals.append(Goal(f"durable single adds, {CLIENTS} clients", rate, 2000, "1/s", at_most=False))


def _add_all(service: Service, requests: Sequence[bytes]) -> None:
    with service.connect() as connection:
        for request in requests:
            answer = connection.exchange(request)
            assert answer.status == 201, answer


def _all_at_once(jobs: Sequence[Callable[[], None]]) -> float:
    """Seconds until the last has ended. Raises the first failure."""
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise failures[0]
    return seconds


def _fsync_ms(directory: Path) -> float:
    took = []
    with (directory / "fsync").open("wb") as file:
        for _ in range(FSYNCS):
            file.write(bytes(4096))
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - started) * 1000)
    return percentile(took, 0.5)
