"""What the service tells about itself: /v1/status, /v1/counters, /healthz, /readyz.

Reads only.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response

from api import schemas
from api.errors import RequestRefused
from api.json_body import JsonResponse
from api.openapi import READ_PROBLEMS, problems
from api.panic import panic_json
from api.running import NO_QUERY, InService
from firewall.errors import Problem
from firewall.rule import format_time
from firewall.view import StatusView

router = APIRouter(tags=["status"])


@router.get(
    "/v1/status",
    response_model=schemas.Status,
    responses=problems(*READ_PROBLEMS),
    summary="State of the service",
    dependencies=[NO_QUERY],
)
def read_status(request: Request, running: InService) -> Response:
    """Versions, hooks, how full the maps are, where the kernel is not as it should be, how the API is guarded."""
    feeds, bouncer = running.feeds, running.crowdsec
    failing = [each.feed.name for each in feeds.all() if each.state.failures] if feeds else []
    outside = {"feeds_failing": failing, "crowdsec": bouncer.progress.state if bouncer else "off"}
    guarded = request.app.state.access.state()
    return JsonResponse({**status_json(running.firewall.status()), **outside, "api": guarded})


def status_json(view: StatusView) -> dict[str, Any]:
    return {
        "version": view.version,
        "ready": view.ready,
        "not_ready": view.not_ready,
        "uptime_s": round(view.uptime_s, 3),
        "started_at": format_time(view.started_at),
        "kernel": view.kernel,
        "bcc": view.bcc,
        "pin_root": view.pin_root,
        "rules": view.rules,
        "revision": view.revision,
        "default_actions": {"ingress": view.default_ingress, "egress": view.default_egress},
        "hooks": [
            {"interface": each.name, **asdict(hook)} for each in view.interfaces for hook in each.hooks
        ],
        "maps": view.maps,
        "drift": view.drift,
        "last_error": view.last_error,
        "never_drop": view.never_drop,
        "panic": panic_json(view.panic),
        "changes_waiting": view.changes_waiting,
        "sets": view.sets,
        "set_entries": view.set_entries,
    }


@router.get(
    "/v1/counters",
    response_model=schemas.CounterList,
    responses=problems(*READ_PROBLEMS),
    summary="Packets and bytes by verdict and reason",
    dependencies=[NO_QUERY],
)
def read_counters(running: InService) -> Response:
    """For each hook of each interface, since it was first protected."""
    return JsonResponse({"items": running.firewall.counters()})


@router.get(
    "/healthz", response_model=schemas.Alive, responses=problems(421), summary="Whether the process answers"
)
async def read_health() -> Response:
    """200 as soon as the service listens."""
    return JsonResponse({"status": "alive"})


@router.get(
    "/readyz", response_model=schemas.Ready, responses=problems(421, 503), summary="Whether it filters"
)
def read_readiness(running: InService) -> Response:
    """200 once every map is filled and every present interface is attached; else 503 with each reason."""
    reasons = running.firewall.not_ready()
    if reasons:
        faults = [Problem("", reason) for reason in reasons]
        raise RequestRefused(503, "not_ready", "; ".join(reasons), problems=faults)
    return JsonResponse({"status": "ready", "panic": running.firewall.panic().on})
