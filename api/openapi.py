"""The OpenAPI document: FastAPI's, with this API's error shape and the rule as clients write it.

Owns the texts about errors that are the same everywhere.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from api import schemas
from api.permissions import OPEN, needed

DESCRIPTION = """Rules go in as JSON; what they name is dropped in the kernel, before its network stack.

A change is answered when it is durable **and** in the kernel; when it fails, everything is as before.
Over TCP, requests carry a token (`Authorization: Bearer efw_...` or `X-API-Key`) or a client certificate, once there
is a token or the config asks for it. A change may say why in `X-Reason`; it stands in the audit.

Errors are `application/problem+json` (RFC 9457): `code` is stable, `errors` point at each fault, `hint` says
what to do. Unknown fields and parameters are errors."""

TAGS = [
    {"name": "rules", "description": "What to drop and what to let through."},
    {"name": "ruleset", "description": "All rules at once."},
    {"name": "sets", "description": "Named lists of addresses, for rules to name."},
    {"name": "feeds", "description": "Lists that fill sets by themselves."},
    {"name": "changes", "description": "Changes that go unless they are confirmed."},
    {"name": "interfaces", "description": "Where packets are judged."},
    {"name": "test", "description": "What would become of a packet."},
    {"name": "packets", "description": "What is dropped, as it is dropped."},
    {"name": "tokens", "description": "Who may use this API."},
    {"name": "audit", "description": "Who changed what."},
    {"name": "status", "description": "How the service is and what it has counted."},
]

PROBLEMS = {
    401: "No credentials, or none that are accepted.",
    403: "The credentials do not suffice, or a web page sent it.",
    404: "There is no such thing.",
    409: "Another rule has that id, a set is in use or managed, a change waits, a lockout, or the host forbids it.",
    412: "The rule set is not the one that If-Match names.",
    413: "The body is too large, or has too many rules.",
    415: "The body is not application/json.",
    421: "The Host header is another name.",
    429: "Too many credentials from this address were wrong: `Retry-After`.",
    422: "Not as asked for here: `errors` point at each fault.",
    502: "A list from outside was refused or did not come.",
    503: "It starts or stops, or kernel or disk refused.",
    507: "A map has no room: `table`, `setting`.",
}
READ_PROBLEMS = (421, 422, 503)
CHANGE_PROBLEMS = (403, 409, 413, 415, 421, 422, 503, 507)
ACCESS_PROBLEMS = (401, 403, 422, 429)
SECURITY_SCHEMES: dict[str, dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token: efw_..."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same token."},
    "certificate": {"type": "mutualTLS", "description": "A certificate that client_scopes names."},
}
# Or none of them: over the Unix socket the kernel says who asks, and on loopback before the first token anybody may.
_NO_SCOPES: list[str] = []
SECURITY = [*({name: _NO_SCOPES} for name in SECURITY_SCHEMES), {}]
REASON = {
    "name": "X-Reason",
    "in": "header",
    "required": False,
    "description": "Why, for the audit.",
    "schema": {"type": "string", "maxLength": 500},
}
SHARED_PARAMETERS = frozenset(("confirm_within", "allow_lockout", "dry_run", "prefer"))
SHARED_HEADERS = frozenset(("Confirm-Id", "Confirm-By"))
PROBLEM = "application/problem+json"
REFERENCE = "#/components/schemas/{model}"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer these."""
    schema = {"$ref": REFERENCE.format(model="ProblemDetails")}
    content = {PROBLEM: {"schema": schema}}
    return {status: {"description": PROBLEMS[status], "content": content} for status in sorted(statuses)}


def document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title=app.title, version=app.version, description=DESCRIPTION, tags=TAGS, routes=app.routes
    )
    _, definitions = models_json_schema(
        [
            (schemas.RuleFields, "validation"),
            (schemas.EntryFields, "validation"),
            (schemas.EntriesRequest, "validation"),
            (schemas.PacketFields, "validation"),
            (schemas.ProblemDetails, "serialization"),
        ],
        ref_template=REFERENCE,
    )
    components = found.setdefault("components", {}).setdefault("schemas", {})
    components.update(definitions["$defs"])
    _allow_null(components["RuleFields"])
    components["RulePatch"] = _patch_of(components["RuleFields"])
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    for operations in found["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                if "$ref" in answer:
                    continue
                answer["description"] = answer["description"].replace("Successful Response", "Done.")
    _guard(found)
    _share(found)
    for part in (found["components"], found["paths"]):
        _untitle(part)
    patch = found["paths"]["/v1/rules/{rule_id}"]["patch"]["requestBody"]["content"]
    patch["application/merge-patch+json"] = patch["application/json"]
    return found


def _guard(found: dict[str, Any]) -> None:
    """What every route has that is not open to all: the scope that it needs, and how it is refused."""
    found["components"]["securitySchemes"] = SECURITY_SCHEMES
    found["components"].setdefault("parameters", {})["reason"] = REASON
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            needs = needed(method.upper(), path)
            if needs == OPEN:
                operation["security"] = [{}]
                continue
            operation["security"] = SECURITY
            operation["x-required-scope"] = needs
            for status, answer in problems(*ACCESS_PROBLEMS).items():
                operation["responses"].setdefault(str(status), answer)
            if method != "get":
                operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/reason"})


def _share(found: dict[str, Any]) -> None:
    """What many calls have, the same parameters, headers and errors, is said once."""
    shared: dict[str, dict[str, Any]] = {"parameters": {}, "headers": {}, "responses": {}}
    for operations in found["paths"].values():
        for operation in operations.values():
            parameters = operation.get("parameters", [])
            for at, each in enumerate(parameters):
                if each.get("name") in SHARED_PARAMETERS:
                    shared["parameters"][each["name"]] = each
                    parameters[at] = {"$ref": f"#/components/parameters/{each['name']}"}
            for status, answer in operation["responses"].items():
                if PROBLEM in answer.get("content", {}):
                    shared["responses"][f"Problem{status}"] = answer
                    operation["responses"][status] = {"$ref": f"#/components/responses/Problem{status}"}
                headers = answer.get("headers", {})
                for name in SHARED_HEADERS & headers.keys():
                    shared["headers"][name] = headers[name]
                    headers[name] = {"$ref": f"#/components/headers/{name}"}
    for kind, these in shared.items():
        found["components"].setdefault(kind, {}).update(these)


def _untitle(node: Any) -> None:
    """Titles only repeat the names of fields and schemas."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for inner in node.values():
            _untitle(inner)
    elif isinstance(node, list):
        for inner in node:
            _untitle(inner)


def _allow_null(rule: dict[str, Any]) -> None:
    """In every field, which the model tells of some only. A field without a type takes anything already."""
    null = {"type": "null"}
    for name, field in rule["properties"].items():
        told = {key: field[key] for key in ("description", "default") if key in field}
        kind = {key: value for key, value in field.items() if key not in (*told, "title")}
        choices = kind["anyOf"] if kind.keys() == {"anyOf"} else [kind]
        if kind and null not in choices:
            rule["properties"][name] = {"anyOf": [*choices, null], **told}


def _patch_of(rule: dict[str, Any]) -> dict[str, Any]:
    """The same fields, each of them or null. A default means nothing here."""
    place = REFERENCE.format(model="RuleFields")
    properties: dict[str, Any] = {
        name: {"anyOf": [{"$ref": f"{place}/properties/{name}"}, {"type": "null"}]}
        for name in rule["properties"]
    }
    text_or_gone = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    labels = {
        "type": "object",
        "additionalProperties": text_or_gone,
        "description": "null takes a label away.",
    }
    properties["labels"] = {"anyOf": [labels, {"type": "null"}]}
    text = "Fields of a rule to change. null resets one to its default."
    return {**rule, "title": "RulePatch", "description": text, "properties": properties}
