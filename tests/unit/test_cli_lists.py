"""`ebpf-fw set import`, `set export`, `feed` and `crowdsec`: what is asked, what a person sees, how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli import set_lists
from cli.__main__ import app
from cli.client import Client
from tests.unit.fake_service import FakeService, fake_service

IMPORT = "/v1/sets/blocked/import"
DONE: dict[str, Any] = {
    "added": 1201, "removed": 14, "refreshed": 0, "unchanged": 5, "missing": 0, "format": "plain", "entries": 1206,
    "bad": 0, "host_bits": 0, "expired": 0, "errors": [],
}  # fmt: skip
STATE: dict[str, Any] = {
    "refreshing": False, "last_attempt": None, "last_success": "2026-01-01T00:00:00Z", "last_change": None,
    "next_refresh": "2026-01-01T01:00:00Z", "error": None, "format": "plain", "entries": 7, "bad": 0, "host_bits": 0,
    "reserved": 0, "own": 0, "never_drop": 0, "reserved_first": [], "refusals": {},
}  # fmt: skip
FEED: dict[str, Any] = {
    "name": "f", "origin": "api", "url": "http://x/", "file": None, "set": "bad", "format": None, "refresh": 3600,
    "rules": ["r"], "timeout": 120, "max_bytes": 1, "max_shrink": 0.5, "reserved": "leave_out", "strict": False,
    "enabled": True,
    "state": STATE,
}  # fmt: skip


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    monkeypatch.setenv("COLUMNS", "200")
    with fake_service() as running:
        monkeypatch.setenv("EBPF_FW_URL", running.url)
        yield running


def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == code, result.output
    return result


# --- import


def test_a_list_is_sent_as_it_is_with_what_was_asked(service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("ip\n203.0.113.7\n")
    service.answers("POST", IMPORT, 200, DONE)
    options = ("--mode", "replace", "--strict", "--ttl", "1h", "--allow-empty", "--dry-run")
    service.answers("POST", IMPORT, 200, {})
    assert run("set", "import", "@blocked", str(file), *options[:-1]).stdout == (
        "added 1,201, removed 14, unchanged 5\n"
    )
    (request,) = service.requests
    assert request.headers["Content-Type"] == "text/csv"
    assert {name: values[0] for name, values in request.query.items()} == {
        "mode": "replace", "strict": "true", "ttl": "1h", "allow_empty": "true",
    }  # fmt: skip


def test_standard_input_is_sent_and_its_format_named(service: FakeService) -> None:
    service.answers("POST", IMPORT, 200, {**DONE, "added": 0, "removed": 0, "unchanged": 0})
    result = run("set", "import", "blocked", "-", "--format", "ipset", stdin="add a 203.0.113.7\n")
    assert result.stdout == "nothing changed\n"
    assert service.requests[0].query["format"] == ["ipset"]


def test_bad_lines_are_told_by_number(service: FakeService) -> None:
    errors = [{"pointer": f"/line/{each}", "detail": "'x' is no address"} for each in range(1, 13)]
    service.answers("POST", IMPORT, 200, {**DONE, "bad": 30, "host_bits": 1, "errors": errors})
    result = run("set", "import", "blocked", "-", stdin="x\n")
    assert "-: 30 bad lines: left out" in result.stderr and "line 10: 'x' is no address" in result.stderr
    assert "line 11" not in result.stderr and "and 20 more" in result.stderr
    assert "1 entry has host bits" in result.stderr
    as_json = json.loads(run("--json", "set", "import", "blocked", "-", stdin="x\n").stdout)
    assert as_json["errors"] == errors


def test_a_refused_list_ends_with_4_and_names_its_lines(service: FakeService) -> None:
    errors = [{"pointer": "/line/2", "detail": "'x' is no address"}]
    service.refuses("POST", IMPORT, 422, "invalid_list", detail="line 2: 'x' is no address", errors=errors)
    result = run("set", "import", "blocked", "-", "--strict", stdin="x\n", code=4)
    assert "-: 1 bad line" in result.stderr or "line 2: 'x' is no address" in result.stderr


@pytest.mark.parametrize(
    ("parts", "told"), [(1, "nothing of - was imported"), (9, "imports all of it or nothing")]
)
def test_an_interrupted_import_says_what_became_of_it(
    monkeypatch: pytest.MonkeyPatch, service: FakeService, parts: int, told: str
) -> None:
    def interrupted(self: Client, path: str, sent: Iterable[bytes], *_: Any, **__: Any) -> None:
        assert path == IMPORT and list(islice(sent, parts))
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "upload", interrupted)
    monkeypatch.setattr(set_lists, "CHUNK_BYTES", 4)
    result = CliRunner().invoke(app, ["set", "import", "blocked", "-"], input="203.0.113.7\n")
    assert told in result.stderr and result.exit_code != 0


def test_a_file_that_is_not_there_is_a_usage_error(service: FakeService, tmp_path: Path) -> None:
    assert "No such file" in run("set", "import", "blocked", str(tmp_path / "none"), code=2).stderr
    assert "directory" in run("set", "import", "blocked", str(tmp_path), code=2).stderr
    assert service.requests == []


# --- export


def test_an_export_goes_to_standard_output_or_a_file(service: FakeService, tmp_path: Path) -> None:
    service.answers("GET", "/v1/sets/blocked/export", 200, b'{"address":"203.0.113.7"}\n')
    assert run("set", "export", "blocked").stdout == '{"address":"203.0.113.7"}\n'
    file = tmp_path / "out"
    assert run("set", "export", "blocked", str(file), "--format", "plain").stdout == f"wrote {file}\n"
    assert file.read_text() == '{"address":"203.0.113.7"}\n'
    assert [each.query["format"] for each in service.requests] == [["ndjson"], ["plain"]]


def test_an_empty_set_is_an_empty_file(service: FakeService, tmp_path: Path) -> None:
    service.answers("GET", "/v1/sets/blocked/export", 200, b"")
    run("set", "export", "blocked", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b""


# --- feeds


def test_feeds_are_listed_with_how_they_went(service: FakeService) -> None:
    error = {"reason": "shrunk", "detail": "it lost 90%", "at": "2026-01-01T00:00:00Z", "times": 3}
    failing = {**FEED, "name": "g", "state": {**STATE, "error": error}}
    left_out = {**FEED, "name": "h", "state": {**STATE, "reserved": 2, "own": 1}}
    useless = {**FEED, "name": "u", "rules": []}
    service.answers("GET", "/v1/feeds", 200, {"items": [FEED, failing, left_out, useless]})
    shown = run("feed", "list").stdout
    assert "shrunk: it lost 90%" in shown and "good, 3 left out" in shown
    assert "good, but no rule names @bad" in shown
    assert json.loads(run("--json", "feed", "list").stdout)["items"][1]["name"] == "g"


def test_a_feed_is_shown_with_its_error(service: FakeService) -> None:
    error = {"reason": "empty", "detail": "the list is empty", "at": "2026-01-01T00:00:00Z", "times": 3}
    state = {
        **STATE,
        "error": error,
        "refusals": {"empty": 3},
        "reserved": 1,
        "reserved_first": ["10.0.0.0/8"],
    }
    service.answers("GET", "/v1/feeds/f", 200, {**FEED, "state": state})
    shown = run("feed", "show", "f").stdout
    assert "empty: the list is empty (3 times)" in shown and "1 (10.0.0.0/8)" in shown


def test_a_feed_is_made_and_the_rule_to_make_is_named(service: FakeService) -> None:
    service.answers("POST", "/v1/feeds", 201, FEED)
    shown = run("feed", "add", "f", "http://x/", "--set", "bad", "--keep-reserved").stdout
    assert "ebpf-fw rule add --source @bad" in shown
    body = service.requests[0].body
    assert (body["url"], body["set"], body["reserved"], body["refresh"]) == ("http://x/", "bad", "keep", "1h")


def test_a_refresh_tells_what_came_or_why_nothing_did(service: FakeService) -> None:
    path = "/v1/feeds/f/refresh"
    done = {"changed": True, "added": 3, "removed": 1, "refreshed": 0, "unchanged": 6, "feed": FEED}
    service.answers("POST", path, 200, done)
    service.answers("POST", path, 200, {**done, "changed": False})
    service.refuses("POST", path, 502, "feed_failed", detail="feed 'f' was not taken: answered 500")
    assert run("feed", "refresh", "f").stdout == "added 3, removed 1, unchanged 6\n"
    assert run("feed", "refresh", "f", "--force").stdout == "f has not changed: 6 entries\n"
    assert service.requests[1].query["force"] == ["true"]
    assert "answered 500" in run("feed", "refresh", "f", code=1).stderr


def test_a_preview_shows_what_would_come_and_go(service: FakeService) -> None:
    preview = {
        "taken": False, "refusal": {"reason": "shrunk", "detail": "it lost 90%"}, "format": "plain", "added": 2,
        "removed": 30, "unchanged": 1, "first_added": ["192.0.2.1", "192.0.2.2"], "first_removed": ["192.0.2.3"],
        "bad": 1, "host_bits": 0, "reserved": 0, "own": 0, "never_drop": 0, "reserved_first": [], "errors": [],
    }  # fmt: skip
    service.answers("POST", "/v1/feeds/f/preview", 200, preview)
    result = run("feed", "preview", "f")
    assert result.stdout.splitlines() == [
        "would be refused, shrunk: it lost 90%", "+ 192.0.2.1", "+ 192.0.2.2", "- 192.0.2.3", "- and 29 more",
    ]  # fmt: skip
    assert "would add 2, remove 30, leave 1" in result.stderr and "1 bad lines" in result.stderr


def test_a_feed_is_deleted(service: FakeService) -> None:
    service.answers("DELETE", "/v1/feeds/f", 204)
    assert "deleted f" in run("feed", "delete", "f").stdout


def test_crowdsec_is_told(service: FakeService) -> None:
    service.answers(
        "GET", "/v1/crowdsec", 200, {"state": "forbidden", "error": "403", "skipped": {"type": 2}}
    )
    shown = run("crowdsec").stdout
    assert "forbidden" in shown and "type 2" in shown


def test_the_status_says_which_lists_fail(service: FakeService) -> None:
    status = {
        "ready": True, "not_ready": [], "version": "1", "kernel": "6.1", "bcc": "0", "uptime_s": 1, "rules": 0,
        "started_at": "2026-01-01T00:00:00Z", "revision": 1, "default_actions": {"ingress": "allow", "egress": "allow"},
        "never_drop": [], "panic": {"on": False}, "pin_root": "/x", "drift": [], "last_error": None, "hooks": [],
        "maps": [], "feeds_failing": ["f"], "crowdsec": "forbidden",
    }  # fmt: skip
    service.answers("GET", "/v1/status", 200, status)
    shown = run("status").stdout
    assert "not taken: f" in shown and "forbidden: ebpf-fw crowdsec says why" in shown
