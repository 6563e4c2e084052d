"""/v1/events: who gets which drops, in which format. The reports come from a kernel in memory."""

from __future__ import annotations

import threading
import time

import orjson
import pytest

from firewall.enforcer import Enforcer
from firewall.layout import C
from firewall.listener import Wanted
from firewall.report import NotSent
from firewall.reporting import MOST_LISTENERS
from tests.api.client import ApiClient, pointers
from tests.memory_kernel import MemoryKernel
from tests.records import record
from tests.unit.host import wait_for


class Wire:
    """What happens on the wire while a request waits: reports, then the end of the service."""

    def __init__(self, api: ApiClient, enforcer: Enforcer, kernel: MemoryKernel) -> None:
        self.api, self.enforcer, self.kernel = api, enforcer, kernel
        self.words = 0

    def get(self, path: str, *records: bytes, missing: NotSent | None = None, **headers: str) -> bytes:
        happens = threading.Thread(target=self._happens, args=(records, missing))
        happens.start()
        answer = self.api("GET", path, headers=headers)
        happens.join()
        assert answer.status_code == 200, answer.text
        self.media_type = answer.headers["content-type"].partition(";")[0]
        return answer.content

    def _happens(self, records: tuple[bytes, ...], missing: NotSent | None) -> None:
        reports, reporting = self.kernel.reports, self.enforcer.reporting
        wait_for(lambda: reports.listening)
        self.words = reports.listening
        if missing is not None:
            reports.missing = [missing] * 2
        reports.put(*records)
        wait_for(lambda: not reports.records and reporting.totals()["events"].read >= len(records))
        wait_for(lambda: missing is None or reporting.totals()["events"].suppressed)
        reporting.end_all()


@pytest.fixture
def wire(api: ApiClient, enforcer: Enforcer, kernel: MemoryKernel) -> Wire:
    return Wire(api, enforcer, kernel)


def add_rule(wire: Wire, rule_id: str = "web") -> int:
    """Its handle."""
    assert wire.api("POST", "/v1/rules", {"id": rule_id, "sources": "10.0.0.2"}).status_code == 201
    stored = wire.enforcer._store.by_id(rule_id)
    assert stored is not None
    return stored.handle


def lines(content: bytes) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in content.splitlines()]


def test_events_are_json_lines_where_asked_for(wire: Wire) -> None:
    handle = add_rule(wire)
    (event,) = lines(wire.get("/v1/events?format=ndjson", record(handle=handle)))
    assert wire.media_type == "application/x-ndjson"
    assert (event["rule"], event["reason"], event["source"]) == ("web", "rule", "10.0.0.2")
    assert wire.words == C["LISTEN_DROPPED"] | C["LISTEN_EVENTS"]
    assert wire.kernel.reports.listening == 0


def test_the_accept_header_asks_too(wire: Wire) -> None:
    (event,) = lines(wire.get("/v1/events", record(), Accept="application/x-ndjson"))
    assert event["protocol"] == "udp"


def test_server_sent_events_are_the_default(wire: Wire) -> None:
    content = wire.get("/v1/events", record(length=77), missing=NotSent(5, 2))
    assert wire.media_type == "text/event-stream"
    blocks = content.decode().split("\n\n")
    assert blocks[0] == ": listening"
    data = [orjson.loads(each.removeprefix("data: ")) for each in blocks if each.startswith("data: ")]
    assert [each["length"] for each in data] == [77]
    assert 'event: suppressed\ndata: {"suppressed":5}' in blocks
    assert 'event: lost\ndata: {"lost":2}' in blocks


def test_what_is_missing_is_told_between_the_lines(wire: Wire) -> None:
    found = lines(wire.get("/v1/events?format=ndjson", record(), missing=NotSent(5, 2)))
    assert {"suppressed": 5} in found and {"lost": 2} in found
    assert sum("time" in each for each in found) == 1


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("rule=web", ["10.0.0.2"]),
        ("address=10.0.0.0/24", ["10.0.0.2", "10.0.0.7"]),
        ("address=10.0.0.7", ["10.0.0.7"]),
        ("address=2001:db8::/32", ["2001:db8::5"]),
        ("interface=eth*", []),
        ("reason=fragment", ["10.0.0.7"]),
        ("hook=egress", ["2001:db8::5"]),
        ("hook=ingress&reason=rule", ["10.0.0.2"]),
    ],
)
def test_filters_choose_events(wire: Wire, query: str, found: list[str]) -> None:
    records = (
        record(handle=add_rule(wire), ifindex=4_000_000),
        record("10.0.0.7", "192.0.2.9", reason="fragment", ifindex=4_000_000),
        record("2001:db8::5", "2001:db8::6", hook="egress", reason="default", ifindex=4_000_000),
    )
    events = lines(wire.get(f"/v1/events?format=ndjson&{query}", *records))
    assert [each["source"] for each in events] == found


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("reason=because", "?reason"),
        ("hook=forward", "?hook"),
        ("address=10.0.0.1/8", "?address"),
        ("address=here", "?address"),
        ("format=xml", "?format"),
        ("interfaces=eth0", "?interfaces"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/events", "/v1/capture"])
def test_a_wrong_filter_is_refused_and_named(api: ApiClient, path: str, query: str, pointer: str) -> None:
    answer = api("GET", f"{path}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_query")
    assert pointers(answer) == [pointer]


@pytest.mark.parametrize("path", ["/v1/events", "/v1/capture"])
def test_a_rule_that_is_not_there_cannot_be_followed(api: ApiClient, path: str) -> None:
    answer = api("GET", f"{path}?rule=nobody")
    assert (answer.status_code, answer.json()["code"]) == (404, "rule_not_found")


def test_too_many_listeners_are_refused(api: ApiClient, enforcer: Enforcer) -> None:
    for _ in range(MOST_LISTENERS):
        enforcer.reporting.listen(Wanted(), lambda: None)
    answer = api("GET", "/v1/events")
    assert (answer.status_code, answer.json()["code"]) == (503, "too_many_listeners")


def test_metrics_tell_what_came_and_what_did_not(wire: Wire) -> None:
    wire.get("/v1/events?format=ndjson", record(), record(), missing=NotSent(5, 3))
    exposition = wire.api("GET", "/metrics").text
    for line in (
        'ebpf_fw_reports_total{stream="events"} 2.0',
        'ebpf_fw_reports_suppressed_total{stream="events"} 5.0',
        'ebpf_fw_reports_lost_in_ring_total{stream="events"} 3.0',
        'ebpf_fw_reports_lost_by_listeners_total{stream="events"} 0.0',
        "ebpf_fw_report_listeners 0.0",
    ):
        assert line in exposition


@pytest.mark.parametrize("path", ["/v1/events?seconds=0.05", "/v1/events?format=ndjson&seconds=0.05"])
def test_events_end_when_the_seconds_are_over(api: ApiClient, path: str) -> None:
    started = time.monotonic()
    assert api("GET", path).status_code == 200
    assert time.monotonic() - started < 5
    assert api("GET", path.replace("0.05", "0")).status_code == 422
