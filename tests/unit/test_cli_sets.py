"""`ebpf-fw set`: what it asks the service, what a person and a program see, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.__main__ import app
from tests.unit.fake_service import FakeService, fake_service

SET: dict[str, Any] = {
    "name": "blocked", "description": "scanners", "source": "api", "entries": 2, "rules": ["r"],
    "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
ENTRY: dict[str, Any] = {
    "address": "203.0.113.7", "comment": "a\x1b[31m", "expires_at": None, "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z", "stats": {"packets": 1234, "bytes": 5, "last_hit": None},
}  # fmt: skip
DONE = {"added": 0, "removed": 0, "refreshed": 0, "unchanged": 0, "missing": 0}
ENTRIES = "/v1/sets/blocked/entries"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    monkeypatch.delenv("COLUMNS", raising=False)
    with fake_service() as running:
        monkeypatch.setenv("EBPF_FW_URL", running.url)
        yield running


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def page(*items: dict[str, Any], number: int = 1, pages: int = 1) -> dict[str, Any]:
    return {
        "items": list(items),
        "total": len(items) * pages,
        "page": number,
        "page_size": 1000,
        "total_pages": pages,
    }


def test_a_set_is_made_and_a_person_is_told_how_to_name_it(service: FakeService) -> None:
    service.answers("PUT", "/v1/sets/blocked", 201, SET)
    assert "@blocked" in run("set", "create", "@blocked", "--description", "scanners").stdout
    assert service.requests[-1].body == {"description": "scanners"}


def test_a_set_that_is_there_is_said_to_be(service: FakeService) -> None:
    service.answers("PUT", "/v1/sets/blocked", 200, SET)
    assert run("set", "create", "blocked").stdout == "blocked is there, with 2 entries\n"
    assert service.requests[-1].body == {}


def test_sets_are_listed(service: FakeService) -> None:
    service.answers("GET", "/v1/sets", 200, page(SET))
    shown = run("set", "list").stdout
    assert all(word in shown for word in ("blocked", "2", "api", "r", "scanners"))
    assert json.loads(run("--json", "set", "list").stdout) == {"items": [SET], "total": 1}


def test_entries_are_added_with_a_time_and_a_comment(service: FakeService) -> None:
    service.answers("POST", ENTRIES, 200, {**DONE, "added": 1, "refreshed": 1})
    arguments = ("203.0.113.7", "2001:db8::/32", "--ttl", "1h", "--comment", "x", "--confirm", "60")
    result = run("set", "add", "blocked", *arguments)
    assert result.stdout == "added 1, refreshed 1\n" and "ebpf-fw confirm" in result.stderr
    asked = service.requests[-1]
    assert asked.body == {"entries": ["203.0.113.7", "2001:db8::/32"], "ttl": "1h", "comment": "x"}
    assert asked.query == {"confirm_within": ["60"]}


def test_an_entry_that_was_not_there_ends_with_12(service: FakeService) -> None:
    service.answers("DELETE", ENTRIES, 200, {**DONE, "removed": 1, "missing": 1})
    result = run("set", "remove", "blocked", "203.0.113.7", "203.0.113.8", code=12)
    assert result.stdout == "removed 1\n" and "1 of 2 entries were not in blocked" in result.stderr
    assert service.requests[-1].body == {"entries": ["203.0.113.7", "203.0.113.8"]}


def test_entries_are_shown_page_by_page_without_what_steers_a_terminal(service: FakeService) -> None:
    service.answers("GET", ENTRIES, 200, page(ENTRY, number=1, pages=2))
    service.answers("GET", ENTRIES, 200, page({**ENTRY, "address": "203.0.113.8"}, number=2, pages=2))
    result = run("set", "entries", "blocked", "--address", "203.0.113.0/24", "--expires")
    assert all(word in result.stdout for word in ("203.0.113.7", "203.0.113.8", "1,234"))
    assert "\x1b[31m" not in result.stdout and "2 entries" in result.stderr
    assert service.requests[0].query["address"] == ["203.0.113.0/24"]
    assert service.requests[0].query["expires"] == ["true"]


def test_a_set_in_use_is_refused_with_4_and_says_by_whom(service: FakeService) -> None:
    service.refuses(
        "DELETE",
        "/v1/sets/blocked",
        409,
        "set_in_use",
        detail="set 'blocked' is named by rule r",
        hint="delete it",
    )
    assert "named by rule r" in run("set", "delete", "blocked", code=4).stderr


def test_a_change_that_is_only_tried_says_what_it_would_do(service: FakeService) -> None:
    effect = {
        "dry_run": True,
        "added": 2,
        "removed": 0,
        "changed": 0,
        "unchanged": 1,
        "shadowed": [],
        "lockouts": [],
    }
    service.answers("POST", ENTRIES, 200, {**effect, "confirm_within": None})
    result = run("set", "add", "blocked", "203.0.113.7", "--dry-run")
    assert result.stdout == "would add 2, remove 0, change 0, leave as they are 1\n"
    assert service.requests[-1].query == {"dry_run": ["true"]}
