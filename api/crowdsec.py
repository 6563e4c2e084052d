"""/v1/crowdsec: whether decisions come, and how many hold.

Reads only.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from api import schemas
from api.json_body import JsonResponse
from api.openapi import READ_PROBLEMS, problems
from api.running import NO_QUERY, InService
from feeds.crowdsec import Bouncer
from feeds.feed import without_password
from firewall.rule import format_time

router = APIRouter(prefix="/v1/crowdsec", tags=["feeds"])


@router.get(
    "",
    response_model=schemas.CrowdSecView,
    responses=problems(*READ_PROBLEMS),
    summary="State of the CrowdSec bouncer",
    dependencies=[NO_QUERY],
)
async def read_crowdsec(running: InService) -> Response:
    """`state` is "off" where the config has no `crowdsec.url`."""
    bouncer = running.crowdsec
    return JsonResponse({"state": "off"} if bouncer is None else crowdsec_json(bouncer))


def crowdsec_json(bouncer: Bouncer) -> dict[str, Any]:
    progress, settings = bouncer.progress, bouncer.settings
    return {
        "state": progress.state,
        "url": without_password(settings.url or ""),
        "set": settings.set,
        "refresh": settings.refresh,
        "error": progress.error or None,
        "error_at": _time(progress.error_at),
        "failures": progress.failures,
        "last_pull": _time(progress.last_pull),
        "last_full": _time(progress.last_full),
        "decisions": len(bouncer.decisions),
        "addresses": bouncer.decisions.addresses,
        "told": progress.told,
        "taken_back": progress.taken_back,
        "skipped": dict(bouncer.decisions.skipped),
    }


def _time(moment: float | None) -> str | None:
    return None if moment is None else format_time(round(moment, 3))
