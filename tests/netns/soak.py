"""What goes on at once in the soak test: changes of every kind with a model of what must be there, and readers.

Owns the threads and the model. When and how the service ends is test_soak.py's; a change that was cut off by that may
have happened or not, and the model takes either, but nothing between.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from firewall.rule import rule_from_fields
from tests.random_rules import random_rules

Rules = dict[str, dict[str, Any]]
RULES_MAX = 150
GONE = (httpx.TransportError,)
# Answers of a service that has just come or is about to go.
PASSING = {"starting", "stopping"}


def normal(fields: dict[str, Any]) -> dict[str, Any]:
    """The canonical text of what was sent, without what time decides."""
    rule = rule_from_fields(fields, fields["id"], 0.0).fields()
    return {field: value for field, value in rule.items() if field != "expires_at"}


class Failures:
    """What a thread found wrong; looked at by the test, which alone may fail."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def run(self, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception as error:  # whatever it is, the test must see it
            self.found.append(f"{type(error).__name__}: {error}")

    def check(self) -> None:
        assert not self.found, "\n".join(self.found)


class Churn:
    """One thread of changes. `paused()` holds it between two changes, when `model` is exact."""

    def __init__(self, client: httpx.Client, failures: Failures, seed: int, permanent: Rules) -> None:
        self._client, self._failures = client, failures
        self._rng = random.Random(seed)
        self._permanent = permanent
        self.model: Rules = {rule_id: normal(rule) for rule_id, rule in permanent.items()}
        self._uncertain: Rules | None = None
        self.changes = 0
        self.lock = threading.Lock()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=failures.run, args=(self._live,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a change never came back"

    def settle(self) -> None:
        """Call with the lock held, when the service is ready: the kept rules are the model's, before or after a change
        that was cut off."""
        answer = self._client.get("/v1/ruleset")
        assert answer.status_code == 200, answer.text
        kept = {rule["id"]: {**rule, "expires_at": None} for rule in answer.json()["rules"]}
        for rule in kept.values():
            del rule["expires_at"]
        if self._uncertain is not None and kept == self._uncertain:
            self.model = self._uncertain
        self._uncertain = None
        differing = {
            name for name in kept.keys() | self.model.keys() if kept.get(name) != self.model.get(name)
        }
        shown = {name: (kept.get(name), self.model.get(name)) for name in sorted(differing)[:5]}
        assert not differing, (
            f"{len(differing)} rules are not as they were acknowledged (kept, model): {shown}"
        )

    def _live(self) -> None:
        while not self._ends.is_set():
            with self.lock:
                if self._uncertain is None:
                    self._change()
            time.sleep(0.002)

    def _change(self) -> None:
        request, after = self._choose()
        try:
            answer = self._client.request(*request[:2], json=request[2])
        except GONE:
            self._uncertain = after
            time.sleep(0.05)
            return
        if answer.status_code == 503 and answer.json()["code"] in PASSING:
            self._uncertain = after
            return
        assert answer.is_success, f"{request}: {answer.status_code} {answer.text}"
        self.model = after
        self.changes += 1

    def _choose(self) -> tuple[tuple[str, str, Any], Rules]:
        """A request, and what must be kept once it was acknowledged."""
        rng, model = self._rng, self.model
        loose = [rule_id for rule_id in model if rule_id not in self._permanent]
        fresh = [{**rule, "id": f"s{rng.getrandbits(48):x}"} for rule in random_rules(rng, rng.randint(1, 8))]
        kind = rng.choices(("add", "put", "delete", "batch", "replace"), (30, 20, 20, 25, 5))[0]
        if len(loose) > RULES_MAX:
            kind = "replace"
        if kind == "add" or not loose:
            rule = fresh[0]
            return ("POST", "/v1/rules", rule), {**model, rule["id"]: normal(rule)}
        chosen = rng.choice(loose)
        if kind == "put":
            rule = {**fresh[0], "id": chosen}
            return ("PUT", f"/v1/rules/{chosen}", rule), {**model, chosen: normal(rule)}
        if kind == "delete":
            rest = {rule_id: rule for rule_id, rule in model.items() if rule_id != chosen}
            return ("DELETE", f"/v1/rules/{chosen}", None), rest
        going = set(rng.sample(loose, min(len(loose), rng.randint(0, 6))))
        added = {rule["id"]: normal(rule) for rule in fresh}
        if kind == "batch":
            rest = {rule_id: rule for rule_id, rule in model.items() if rule_id not in going}
            return ("POST", "/v1/rules/batch", {"add": fresh, "delete": sorted(going)}), {**rest, **added}
        kept = {rule_id: model[rule_id] for rule_id in (*self._permanent, *loose[: RULES_MAX // 3])}
        whole = [*kept.values(), *fresh]
        return ("PUT", "/v1/ruleset", {"rules": whole}), {**kept, **added}


class Readers:
    """Threads that read everything over and over; every answer must be whole."""

    PATHS = (
        "/v1/rules?page_size=1000", "/v1/ruleset", "/v1/counters", "/v1/status", "/v1/interfaces", "/metrics",
        "/healthz", "/readyz", "/openapi.json", "/v1/rules?address=10.0.0.1",
    )  # fmt: skip

    def __init__(self, make_client: Callable[[], httpx.Client], failures: Failures, count: int = 2) -> None:
        self._make_client = make_client
        self._ends = threading.Event()
        self.reads = 0
        self._threads = [
            threading.Thread(target=failures.run, args=(self._read,), daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a read never came back"

    def _read(self) -> None:
        with self._make_client() as client:
            while not self._ends.is_set():
                for path in self.PATHS:
                    try:
                        answer = client.get(path)
                    except GONE:
                        time.sleep(0.05)
                        continue
                    assert answer.status_code in (200, 503), f"{path}: {answer.status_code} {answer.text}"
                    self.reads += 1
                time.sleep(0.02)
