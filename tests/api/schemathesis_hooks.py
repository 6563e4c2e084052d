"""What schemathesis is told beyond the OpenAPI document. It loads this module itself (SCHEMATHESIS_HOOKS).

Owns the body format that it does not know, and bounds for answers that go on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import schemathesis

ENDLESS = ("/v1/events", "/v1/capture")
SECONDS = 0.05


@schemathesis.serializer("application/x-ndjson")
def rules_a_line(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """It generates what the document says: a text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Answers that go on for ever are asked for a moment, where no wrong value of that parameter is tried."""
    if case.path not in ENDLESS or case.method.upper() != "GET":
        return
    asked = case.query.get("seconds")
    is_right = asked is None
    with suppress(TypeError, ValueError):
        is_right = is_right or 0 < float(asked) <= 86400
    if is_right:
        case.query["seconds"] = SECONDS
