"""`--confirm`, `--allow-lockout`, `--dry-run`, and the commands that end a change that waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.__main__ import app
from tests.unit.fake_service import FakeService, fake_service
from tests.unit.test_cli import INTERFACE, RULE

EFFECT: dict[str, Any] = {
    "dry_run": True, "added": 1, "removed": 0, "changed": 2, "unchanged": 3, "confirm_within": None,
    "shadowed": [{"rule": "late", "by": "early"}],
    "lockouts": [{"rule": "web-1", "connection": "the SSH session 203.0.113.9:5 to 10.0.0.1:22", "purpose": "ssh",
                  "interface": "eth7", "hook": "ingress"}],
}  # fmt: skip
CHANGE: dict[str, Any] = {
    "id": 3, "what": "POST /v1/rules", "state": "pending", "reason": "", "made_at": "2026-01-01T00:00:00Z",
    "deadline": "2026-01-01T00:01:00Z", "seconds_left": 41.5, "ended_at": None, "added": 1, "removed": 0, "changed": 0,
}  # fmt: skip
CAREFUL = {"confirm_within": ["60"], "allow_lockout": ["true"]}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    monkeypatch.delenv("COLUMNS", raising=False)
    with fake_service() as running:
        monkeypatch.setenv("EBPF_FW_URL", running.url)
        yield running


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


COMMANDS: list[tuple[list[str], str, str, Any]] = [
    (["rule", "add", "--source", "203.0.113.7"], "POST", "/v1/rules", RULE),
    (["rule", "promote", "web-1"], "POST", "/v1/rules/web-1/promote", RULE),
    (["rule", "delete", "a"], "DELETE", "/v1/rules/a", None),
    (["rule", "delete", "a", "b"], "POST", "/v1/rules/batch", {"added": 0, "deleted": 2, "unchanged": 0, "ids": []}),
    (["interface", "attach", "eth7"], "PUT", "/v1/interfaces/eth7", INTERFACE),
    (["interface", "detach", "eth7"], "DELETE", "/v1/interfaces/eth7", None),
    (["import", "LIST"], "POST", "/v1/rules/import", {"added": 1, "unchanged": 0}),
    (["import", "RULES"], "POST", "/v1/rules/batch", {"added": 1, "deleted": 0, "unchanged": 0, "ids": []}),
    (["import", "RULES", "--replace"], "PUT", "/v1/ruleset", {"rules": 1, "added": 1, "deleted": 0, "unchanged": 0}),
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "list").write_text("203.0.113.7\n")
    (tmp_path / "rules").write_text(json.dumps({"rules": [RULE]}))
    return {"LIST": str(tmp_path / "list"), "RULES": str(tmp_path / "rules")}


@pytest.mark.parametrize(("command", "method", "path", "answer"), COMMANDS, ids=lambda value: str(value)[:40])
def test_every_command_that_changes_something_can_be_careful(
    service: FakeService, files: dict[str, str], command: list[str], method: str, path: str, answer: Any
) -> None:
    service.answers(method, path, 204 if answer is None else 201 if path == "/v1/rules" else 200, answer)
    arguments = [files.get(each, each) for each in command]
    result = run(*arguments, "--confirm", "60", "--allow-lockout")
    assert result.exit_code == 0, result.output
    asked = {name: service.requests[-1].query.get(name) for name in CAREFUL}
    assert asked == CAREFUL and "dry_run" not in service.requests[-1].query
    assert "60 s" in result.stderr and "ebpf-fw confirm" in result.stderr


@pytest.mark.parametrize(("command", "method", "path", "answer"), COMMANDS, ids=lambda value: str(value)[:40])
def test_every_command_that_changes_something_can_be_tried(
    service: FakeService, files: dict[str, str], command: list[str], method: str, path: str, answer: Any
) -> None:
    service.answers(method, path, 200, EFFECT)
    arguments = [files.get(each, each) for each in command]
    result = run(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    assert service.requests[-1].query["dry_run"] == ["true"]
    assert "would add 1, remove 0, change 2, leave as they are 3" in result.stdout
    assert "late can never win: early beats it" in result.stdout
    assert "lockout: web-1 would drop the SSH session 203.0.113.9:5" in result.stdout
    result = run(*arguments, "--dry-run", "--json")
    assert json.loads(result.stdout) == EFFECT


def test_without_the_options_nothing_is_asked(service: FakeService) -> None:
    service.answers("POST", "/v1/rules", 201, RULE)
    assert run("rule", "add", "--source", "203.0.113.7").exit_code == 0
    assert service.requests[-1].query == {}


@pytest.mark.parametrize(("command", "state"), [("confirm", "confirmed"), ("rollback", "rolled_back")])
def test_what_waits_is_ended_all_of_it_or_one(service: FakeService, command: str, state: str) -> None:
    service.answers("POST", f"/v1/{command}", 200, {state: [CHANGE]})
    result = run(command)
    assert result.exit_code == 0 and f"{state.replace('_', ' ')} 3: POST /v1/rules" in result.stdout
    assert service.requests[-1].query == {}
    assert run(command, "3").exit_code == 0
    assert service.requests[-1].query == {"id": ["3"]}
    assert json.loads(run(command, "--json").stdout) == {state: [CHANGE]}


def test_nothing_to_confirm_is_not_found(service: FakeService) -> None:
    service.refuses("POST", "/v1/confirm", 404, "change_not_found", detail="no change waits")
    assert run("confirm").exit_code == 12


def test_changes_are_listed(service: FakeService) -> None:
    ended = {**CHANGE, "id": 2, "state": "rolled_back", "seconds_left": None, "reason": "it was asked for"}
    service.answers("GET", "/v1/changes", 200, {"pending": [CHANGE], "recent": [ended]})
    result = run("changes")
    assert result.exit_code == 0
    assert "42 s" in result.stdout and "it was asked for" in result.stdout and "rolled_back" in result.stdout
    assert json.loads(run("changes", "--json").stdout)["pending"] == [CHANGE]


def test_a_lockout_is_refused_with_what_the_service_says(service: FakeService) -> None:
    detail = "rule 'r' would drop the SSH session"
    service.refuses("POST", "/v1/rules", 409, "lockout", detail=detail)
    result = run("rule", "add", "--source", "203.0.113.7")
    assert result.exit_code == 4 and detail in result.stderr
