"""The application: routes, errors, guard, documentation.

Owns the wiring of the API. It starts and stops nothing: api.server does, and says so in `app.state.running`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from api import (
    analysis,
    audit,
    capture,
    changes,
    crowdsec,
    docs,
    errors,
    events,
    feeds,
    imports,
    interfaces,
    metrics,
    openapi,
    packet_tests,
    panic,
    rules,
    ruleset,
    set_lists,
    sets,
    status,
    tokens,
)
from api.access import Access, Admission
from api.guard import Guard
from api.measured import Measured
from api.running import Phase, Running
from api.short_way import ShortWay
from api.tls import ServerTls
from api.wiring import version
from firewall.enforcer import Enforcer
from firewall.settings import Api


def create_app(
    enforcer: Enforcer,
    *,
    phase: Phase = "running",
    settings: Api | None = None,
    tls: ServerTls | None = None,
    most_body_bytes: int | None = None,
) -> FastAPI:
    """`phase`: "starting" where the enforcer has still to be started. `most_body_bytes`: instead of what the settings
    say; larger bodies are refused with 413."""
    settings = settings or Api()
    app = FastAPI(
        title="ebpf-fw",
        version=version(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.running = Running(enforcer, phase)
    app.state.settings = settings
    app.state.access = Access(enforcer, settings, tls)
    app.state.metrics = metrics.registry_of(app.state.running)
    for part in (
        imports,
        rules,
        ruleset,
        set_lists,
        sets,
        feeds,
        crowdsec,
        analysis,
        changes,
        interfaces,
        packet_tests,
        panic,
        events,
        capture,
        status,
        metrics,
        tokens,
        audit,
        docs,
    ):
        app.include_router(part.router)
    errors.install(app)
    app.add_middleware(ShortWay, running=app.state.running)
    app.add_middleware(Admission, access=app.state.access)
    app.add_middleware(
        Guard,
        most_body_bytes=most_body_bytes or settings.max_body_bytes,
        allowed_hosts=settings.allowed_hosts,
    )
    app.add_middleware(Measured, requests=app.state.running.requests)
    _document(app)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _document(app: FastAPI) -> None:
    def cached() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi.document(app)
        return app.openapi_schema

    app.openapi = cached  # type: ignore[method-assign]
