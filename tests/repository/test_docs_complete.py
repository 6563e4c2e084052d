"""The documentation names all that users meet: reasons, error codes, config keys, metrics, rule fields."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from api.metrics import registry_of
from api.running import Running
from firewall.layout import REASONS
from firewall.rule import READ_ONLY, WRITABLE
from firewall.settings import Feed, Interface, Settings
from tests.memory_kernel import memory_enforcer

ROOT = Path(__file__).parents[2]
# Where the code stands among the positional arguments of what makes an error.
CODE_ARGUMENT = {"RequestRefused": 1, "problem_response": 1, "InvalidInput": 3}


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def missing(names: set[str], text: str) -> list[str]:
    """A name counts where it stands as code."""
    return sorted(name for name in names if f"`{name}`" not in text)


# --- error codes


def error_codes() -> set[str]:
    sources = [path for package in ("api", "firewall") for path in (ROOT / package).rglob("*.py")]
    return {code for path in sources for code in codes_in(ast.parse(path.read_text(encoding="utf-8")))}


def codes_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from codes_of_call(node)
        elif isinstance(node, ast.Assign) and any(is_code(target) for target in node.targets):
            yield from texts(node.value)
        elif isinstance(node, ast.AnnAssign) and is_code(node.target) and isinstance(node.value, ast.Call):
            yield from (
                text for each in node.value.keywords if each.arg == "default" for text in texts(each.value)
            )


def codes_of_call(call: ast.Call) -> Iterator[str]:
    at = CODE_ARGUMENT.get(call.func.id) if isinstance(call.func, ast.Name) else None
    if at is not None and len(call.args) > at:
        yield from texts(call.args[at])
    yield from (text for each in call.keywords if each.arg == "code" for text in texts(each.value))


def is_code(target: ast.expr) -> bool:
    return (isinstance(target, ast.Name) and target.id == "code") or (
        isinstance(target, ast.Attribute) and target.attr == "code"
    )


def texts(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.IfExp):
        yield from texts(value.body)
        yield from texts(value.orelse)
    elif isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value


def test_the_codes_are_found_in_every_way_that_the_source_writes_them() -> None:
    found = error_codes()
    # By class, keyword, position, assignment, condition.
    assert {"table_full", "program_conflict", "cross_origin", "no_hook", "offload_unavailable"} <= found
    assert {"invalid_query", "invalid_body", "internal", "invalid_config"} <= found


@pytest.mark.parametrize("name", ["api.md", "operations.md"])
def test_every_error_code_is_in(name: str) -> None:
    assert missing(error_codes(), document(name)) == []


# --- what packets get, what rules say


def test_every_reason_is_in_drop_reasons() -> None:
    rows = [
        line.split("|")[1:3] for line in document("drop-reasons.md").splitlines() if line.startswith("| ")
    ]
    numbered = {
        int(number): reason.strip().strip("`") for number, reason in rows if number.strip().isdecimal()
    }
    assert numbered == dict(enumerate(REASONS))


def test_every_field_of_a_rule_is_in_the_rule_language() -> None:
    assert missing(set(WRITABLE | READ_ONLY), document("rule-language.md")) == []


# --- settings and metrics


def defaults(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the config in dotted form, with its default."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from defaults(type(default), f"{prefix}{name}.")
        else:
            yield prefix + name, default


def as_toml(value: object) -> str:
    """As the table shows it."""
    if value is None:
        return "none"
    if value == {}:
        return "{}"
    if isinstance(value, list):
        if len(value) != 1:
            return json.dumps(value)
        value = value[0]
    return str(value).lower() if isinstance(value, bool | int | float) else f'"{value}"'


# Needed, or found out, or an empty list: told in words.
IN_WORDS = {
    "interfaces", "interfaces.name", "feeds.name", "feeds.url", "feeds.file", "feeds.set", "feeds.format",
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "default"),
    [*defaults(Settings), *defaults(Interface, "interfaces."), *defaults(Feed, "feeds.")],
)
def test_every_config_key_is_in_the_configuration_with_its_default(key: str, default: object) -> None:
    rows = [line for line in document("configuration.md").splitlines() if line.startswith(f"| `{key}` |")]
    assert len(rows) == 1
    if key not in IN_WORDS:
        assert rows[0].split("|")[2].strip().strip("`") == as_toml(default)


def test_every_metric_is_in_operations(tmp_path: Path) -> None:
    enforcer, _ = memory_enforcer(tmp_path, {"interfaces": [{"name": "eth0"}]})
    try:
        exposition = generate_latest(registry_of(Running(enforcer, "running"))).decode()
    finally:
        enforcer.stop()
    families = text_string_to_metric_families(exposition)
    names = {sample.name for family in families for sample in family.samples}
    assert {"ebpf_fw_ready", "ebpf_fw_packets_total"} <= names
    assert missing(names, document("operations.md")) == []
