"""CrowdSec's decisions: durations, several for one address, and a local API that answers well and badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from feeds.crowdsec import Bouncer
from feeds.decisions import Decisions, parse_go_duration
from feeds.feed import Around
from firewall.address import parse_prefix
from firewall.errors import table_full
from firewall.settings import CrowdSec
from tests.unit.list_server import ListServer, Request, answer, with_server
from tests.unit.memory_sets import MemorySets, rows

NOW = 1_800_000_000.0


def decision(number: int, value: str = "203.0.113.7", duration: str = "4h", **fields: Any) -> dict[str, Any]:
    """As the local API tells it."""
    return {
        "id": number, "origin": "crowdsec", "type": "ban", "scope": "Ip", "value": value, "duration": duration,
        "scenario": "crowdsecurity/ssh-bf", **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h59m49.6s", 14389.6), ("-1h2s", -3602.0), ("150ms", 0.15), ("1.5h", 5400.0), ("0s", 0.0), ("0", 0.0),
     ("2us", 2e-6), ("2µs", 2e-6), ("3ns", 3e-9), ("+4m", 240.0), (".5s", 0.5), ("167h59m59.999999s", 604799.999999)],
)  # fmt: skip
def test_durations_of_go(text: str, seconds: float) -> None:
    assert parse_go_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "-", "4", "h", "4d", "4h ", "4h5", "1e3s", "4h-5m", None, 4, "9" * 99 + "s"]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError):
        parse_go_duration(text)


# --- what holds --------------------------------------------------------------------------------------------


def held(decisions: Decisions) -> dict[str, tuple[float, str]]:
    return {str(prefix): each for prefix, each in rows(decisions.entries()).items()}


def test_an_address_stays_until_its_last_decision_goes() -> None:
    decisions = Decisions()
    decisions.begin([decision(1, duration="1h"), decision(2, duration="4h", scenario="other")], NOW)
    assert held(decisions) == {"203.0.113.7": (NOW + 14400, "crowdsec: other")}
    touched = decisions.change([], [decision(2, duration="-1s")], NOW + 10)
    assert not touched.is_unsure and decisions.gone(touched.prefixes) == []
    assert held(decisions) == {"203.0.113.7": (NOW + 3600, "crowdsec: crowdsecurity/ssh-bf")}
    touched = decisions.change([], [decision(1, duration="-1s")], NOW + 20)
    assert len(decisions.gone(touched.prefixes)) == 1 and held(decisions) == {}


def test_a_decision_that_was_never_told_and_goes_makes_what_holds_unsure() -> None:
    decisions = Decisions()
    decisions.begin([decision(5)], NOW)
    assert decisions.change([], [decision(3, duration="-1s")], NOW).is_unsure
    assert list(held(decisions)) == ["203.0.113.7"]
    assert not decisions.change([], [decision(4, "192.0.2.1", "-1s")], NOW).is_unsure


def test_a_decision_that_is_told_again_is_prolonged() -> None:
    decisions = Decisions()
    decisions.begin([decision(1, duration="1h")], NOW)
    decisions.change([decision(1, duration="8h")], [], NOW)
    assert held(decisions)["203.0.113.7"][0] == NOW + 28800
    decisions.change([], [], NOW + 28801)
    assert len(decisions) == decisions.addresses == 0


def test_what_makes_no_entry_is_counted_by_reason() -> None:
    own = parse_prefix("192.0.2.1")
    decisions = Decisions([own])
    decisions.begin(
        [
            decision(1), decision(2, "2001:db8::/48", scope="range"), decision(3, scope="Country", value="XX"),
            decision(4, type="captcha"), decision(5, "no address"), decision(6, duration="long"),
            decision(7, "192.0.2.0/24", scope="Range"), {"id": 8}, decision(9, "198.51.100.1", "-5s"),
            {**decision(10), "id": None},
        ],
        NOW,
    )  # fmt: skip
    assert sorted(held(decisions)) == ["2001:db8::/48", "203.0.113.7"]
    assert dict(decisions.skipped) == {"scope": 1, "type": 2, "broken": 3, "own": 1}


# --- the protocol ------------------------------------------------------------------------------------------


class LocalApi:
    """As LAPI is: a stream per key, and 403 to those that it does not know. `answers`: what comes next, in turn; then
    nothing new."""

    def __init__(self, server: ListServer) -> None:
        self.server = server
        self.key = "837be58e22a28738066de1be8f53636b"
        self.whole: list[dict[str, Any]] = []
        self.answers: list[Any] = []
        server.answers["/v1/decisions/stream"] = self._answer

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        name, _, version = request.headers.get("user-agent", "").partition("/")
        if request.headers.get("x-api-key") != self.key or not name or not version:
            body = {"message": "access forbidden"}
            return await answer(403, json.dumps(body).encode())(request, writer)
        if request.query["startup"] == "true":
            told: Any = {"new": self.whole or None, "deleted": None}
        else:
            told = self.answers.pop(0) if self.answers else {"new": None, "deleted": None}
        if isinstance(told, int):
            return await answer(told)(request, writer)
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        return await answer(200, body, content_type="application/json")(request, writer)

    def starts(self) -> int:
        return sum(each.query["startup"] == "true" for each in self.server.requests)


class Bench:
    def __init__(self, server: ListServer) -> None:
        self.api, self.sets = LocalApi(server), MemorySets()
        self.url = f"http://127.0.0.1:{server.port}"

    def bouncer(self, **fields: Any) -> Bouncer:
        settings = CrowdSec.model_validate(
            {"url": self.url, "api_key": self.api.key, "timeout": 5, **fields}
        ).model_copy(update={"refresh": 0.05})  # the config allows no such haste
        return Bouncer(settings, Around(self.sets, "ebpf-fw/1", tuple, lambda: NOW, lambda: 0.2))


def with_api(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
    run = with_server(lambda server: test(Bench(server)))
    run.__name__ = test.__name__
    return run


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - many things are waited for, and none sets an event
        await asyncio.sleep(0.01)


@with_api
async def test_decisions_come_at_the_start_and_as_they_are_made(bench: Bench) -> None:
    bench.api.whole = [decision(1), decision(2, "198.51.100.0/24", scope="Range", origin="CAPI")]
    bench.api.answers = [
        {"new": [decision(3, "192.0.2.9", "3h59m49.6s")], "deleted": [decision(1, duration="-1s")]},
    ]
    bouncer = bench.bouncer(scenarios=["ssh", "http"], origins=["crowdsec"])
    bouncer.start()
    await until(lambda: bench.sets.addresses("crowdsec") == ["198.51.100.0/24", "203.0.113.7"])
    await until(lambda: bench.sets.addresses("crowdsec") == ["192.0.2.9", "198.51.100.0/24"])
    assert bench.sets.entries["crowdsec"][parse_prefix("192.0.2.9")] == (
        NOW + 14389.6,
        "crowdsec: crowdsecurity/ssh-bf",
    )
    assert bench.sets.sources == {"crowdsec": "crowdsec"}
    first = bench.api.server.requests[0]
    assert first.query == {
        "startup": "true", "scopes": "Ip%2CRange", "origins": "crowdsec", "scenarios_containing": "ssh%2Chttp",
    }  # fmt: skip
    assert (bouncer.progress.state, bouncer.progress.told, bouncer.progress.taken_back) == ("streaming", 3, 1)
    assert bench.api.starts() == 1
    await bouncer.close()


@with_api
async def test_a_key_that_is_not_known_is_said_clearly_and_tried_again(bench: Bench) -> None:
    around = Around(bench.sets, "ebpf-fw/1", tuple, lambda: NOW, lambda: 0.001)  # of the minute that it waits
    bench.sets.entries["crowdsec"] = {parse_prefix("203.0.113.1"): (0.0, "")}
    bench.sets.sources["crowdsec"] = "crowdsec"
    key, bench.api.key = bench.api.key, "another"
    bouncer = Bouncer(bench.bouncer(api_key=key).settings, around)
    bouncer.start()
    await until(lambda: bouncer.progress.state == "forbidden")
    assert "cscli bouncers add" in bouncer.progress.error
    assert bench.sets.addresses("crowdsec") == ["203.0.113.1"]  # what was there stays until it expires
    bench.api.key = key
    await until(lambda: bouncer.progress.state == "streaming")
    assert bouncer.progress.error == ""
    await bouncer.close()


@pytest.mark.parametrize("broken", [500, b"<html>", b"[]", b"{}", b'{"new": 5}', b'{"new": [', 302])
def test_a_broken_answer_changes_nothing_and_is_followed_by_a_whole_one(broken: Any) -> None:
    @with_api
    async def run(bench: Bench) -> None:
        bench.api.whole = [decision(1)]
        bench.api.answers = [broken]
        bouncer = bench.bouncer()
        bouncer.start()
        await until(lambda: bench.api.starts() == 2 and bouncer.progress.state == "streaming")
        assert bench.sets.addresses("crowdsec") == ["203.0.113.7"]
        await bouncer.close()

    run()


@with_api
async def test_what_was_never_told_and_goes_is_followed_by_a_whole_answer(bench: Bench) -> None:
    bench.api.whole = [decision(5, duration="4h")]
    bouncer = bench.bouncer()
    bouncer.start()
    await until(lambda: bench.sets.addresses("crowdsec"))
    bench.api.whole = []
    bench.api.answers = [{"new": None, "deleted": [decision(3, duration="-1s")]}]
    await until(lambda: not bench.sets.addresses("crowdsec"))
    assert bench.api.starts() == 2
    await bouncer.close()


@with_api
async def test_what_the_firewall_refuses_is_told_and_asked_for_again(bench: Bench) -> None:
    bench.api.whole = [decision(1)]
    bouncer = bench.bouncer()
    bench.sets.failing = table_full("address4", 10, 11, "bpf.max_addresses", "addresses")
    bouncer.start()
    await until(lambda: bouncer.progress.state == "failing")
    assert "address4" in bouncer.progress.error
    bench.sets.failing = None
    await until(lambda: bench.sets.addresses("crowdsec") == ["203.0.113.7"])
    await bouncer.close()


@with_api
async def test_nobody_listens_and_then_somebody_does(bench: Bench) -> None:
    bouncer = bench.bouncer(url="http://127.0.0.1:1")
    bouncer.start()
    await until(lambda: bouncer.progress.failures >= 3)
    assert bouncer.progress.state == "failing"
    await bouncer.close()


def test_a_key_in_a_file_is_read_each_time(tmp_path: Path) -> None:
    @with_api
    async def run(bench: Bench) -> None:
        file = tmp_path / "key"
        bouncer = bench.bouncer(api_key=None, api_key_file=str(file))
        bouncer.start()
        await until(lambda: bouncer.progress.state == "failing")
        assert "api_key_file" in bouncer.progress.error
        file.write_text(bench.api.key + "\n")
        await until(lambda: bouncer.progress.state == "streaming")
        await bouncer.close()

    run()


@pytest.mark.parametrize(
    "fields",
    [{"url": "localhost:8080", "api_key": "x"}, {"url": "http://a"},
     {"url": "http://a", "api_key": "x", "api_key_file": "/x"},
     {"url": "https://a", "cert_file": "/x"}, {"url": "http://a", "api_key": "x", "scopes": ["Country"]}],
)  # fmt: skip
def test_settings_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        CrowdSec.model_validate(fields)
