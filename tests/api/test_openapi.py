"""The OpenAPI document is complete and true, and /docs shows it without the internet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from api.schemas import RuleFields
from firewall.errors import InvalidInput
from firewall.rule import READ_ONLY, WRITABLE, Rule, rule_from_fields
from tests.api.client import ApiClient

CALLS = {
    "POST /v1/rules/import",
    "GET /v1/rules", "POST /v1/rules", "POST /v1/rules/batch",
    "GET /v1/rules/{rule_id}", "PUT /v1/rules/{rule_id}",
    "PATCH /v1/rules/{rule_id}", "DELETE /v1/rules/{rule_id}",
    "POST /v1/rules/{rule_id}/reset-counters", "GET /v1/analysis",
    "POST /v1/rules/{rule_id}/promote", "POST /v1/test",
    "GET /v1/ruleset", "PUT /v1/ruleset",
    "GET /v1/sets", "GET /v1/sets/{name}", "PUT /v1/sets/{name}", "DELETE /v1/sets/{name}",
    "GET /v1/sets/{name}/entries", "POST /v1/sets/{name}/entries", "PUT /v1/sets/{name}/entries",
    "DELETE /v1/sets/{name}/entries",
    "GET /v1/panic", "POST /v1/panic", "GET /v1/changes", "POST /v1/confirm", "POST /v1/rollback",
    "GET /v1/interfaces", "GET /v1/interfaces/{name}",
    "PUT /v1/interfaces/{name}", "DELETE /v1/interfaces/{name}",
    "GET /v1/events", "GET /v1/capture",
    "POST /v1/sets/{name}/import", "GET /v1/sets/{name}/export",
    "GET /v1/feeds", "POST /v1/feeds", "GET /v1/feeds/{name}", "PUT /v1/feeds/{name}", "DELETE /v1/feeds/{name}",
    "POST /v1/feeds/{name}/refresh", "POST /v1/feeds/{name}/preview", "GET /v1/crowdsec",
    "GET /v1/tokens", "POST /v1/tokens", "DELETE /v1/tokens/{name}", "GET /v1/audit",
    "GET /v1/status", "GET /v1/counters", "GET /healthz", "GET /readyz", "GET /metrics",
}  # fmt: skip


@pytest.fixture
def document(api: ApiClient) -> dict[str, Any]:
    found: dict[str, Any] = api("GET", "/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_call_is_documented(document: dict[str, Any]) -> None:
    assert {call for call, _ in operations(document)} == CALLS
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for call, operation in operations(document):
        assert operation["summary"] and operation["description"] and operation["tags"], call
        assert re.fullmatch(r"[a-z_]+", operation["operationId"]), call


def resolved(document: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """What is the same at every route is said once."""
    place: Any = document
    for part in answer["$ref"].removeprefix("#/").split("/") if "$ref" in answer else ():
        place = place[part]
    return answer if "$ref" not in answer else place


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in set(references(document)):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_every_error_has_the_one_shape(document: dict[str, Any]) -> None:
    for call, operation in operations(document):
        for status, answer in operation["responses"].items():
            if int(status) < 400:
                continue
            assert answer == {"$ref": f"#/components/responses/Problem{status}"}, call
            shared = document["components"]["responses"][f"Problem{status}"]
            schema = shared["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ProblemDetails"}, f"{call} {status}"
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_field_of_a_rule_is_described(document: dict[str, Any]) -> None:
    for name, field in document["components"]["schemas"]["RuleFields"]["properties"].items():
        assert field.get("description"), name


def test_the_schema_has_the_fields_of_a_rule_with_their_defaults() -> None:
    assert set(RuleFields.model_fields) == WRITABLE | READ_ONLY
    defaults = RuleFields.model_validate({}).model_dump(exclude={"id", "ttl", *READ_ONLY})
    assert defaults == {name: value for name, value in Rule("any").fields().items() if name != "id"}


def test_every_example_is_a_rule(document: dict[str, Any]) -> None:
    for name, field in document["components"]["schemas"]["RuleFields"]["properties"].items():
        for example in [
            *field.get("examples", ()),
            *(e for o in field.get("anyOf", ()) for e in o.get("examples", ())),
        ]:
            RuleFields.model_validate({name: example})
            rule_from_fields({name: example}, "a", 0.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": 65536}, {"priority": -1}, {"priority": "1"}, {"priority": True}, {"action": "reject"},
        {"direction": "in"}, {"family": "ipv5"}, {"enabled": 1}, {"description": "x" * 1025}, {"sources": 7},
        {"tcp_flags": {"set": ["xyz"]}}, {"tcp_flags": {"sets": []}}, {"labels": {"a": 1}}, {"nosuch": 1},
        {"labels": []}, {"interfaces": 1}, {"expires_at": 5}, {"protocols": [{}]},
    ],
    ids=str,
)  # fmt: skip
def test_what_the_schema_refuses_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RuleFields.model_validate(fields)
    with pytest.raises(InvalidInput):
        rule_from_fields(fields, "a", 0.0)


def test_null_is_documented_for_every_field_and_is_as_if_it_were_absent(document: dict[str, Any]) -> None:
    properties = document["components"]["schemas"]["RuleFields"]["properties"]
    for name, field in properties.items():
        assert name in READ_ONLY or {"type": "null"} in field["anyOf"], name
    rule = rule_from_fields(dict.fromkeys(properties), "a", 0.0)
    assert rule == rule_from_fields({}, "a", 0.0)


def test_read_only_fields_may_be_anything(document: dict[str, Any]) -> None:
    for name in READ_ONLY:
        field = document["components"]["schemas"]["RuleFields"]["properties"][name]
        assert not field.keys() & {"type", "anyOf", "$ref"}, name
        assert rule_from_fields({name: [{"odd": None}]}, "a", 0.0) == rule_from_fields({}, "a", 0.0)


def test_a_patch_documents_null_for_every_field(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["RulePatch"]["properties"].keys() == schemas["RuleFields"]["properties"].keys()
    for name, field in schemas["RulePatch"]["properties"].items():
        assert {"type": "null"} in field["anyOf"], name


def test_the_page_needs_nothing_from_elsewhere(api: ApiClient) -> None:
    page = api("GET", "/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.findall(r"https?:|//[a-z]|@import|url\(", re.sub(r"\s// .*", "", page.text))
    assert "connect-src 'self'" in page.headers["content-security-policy"]


def test_the_document_is_small_enough_to_read_at_once(document: dict[str, Any]) -> None:
    assert len(json.dumps(document)) < 150_000
