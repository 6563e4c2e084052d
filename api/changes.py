"""/v1/changes, /v1/confirm, /v1/rollback: changes that were made with confirm_within.

Owns these addresses. The way back of a change is the enforcer's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api import schemas
from api.json_body import JsonResponse
from api.openapi import READ_PROBLEMS, problems
from api.origin import ACTING
from api.permissions import needed, suffices
from api.running import NO_QUERY, InService
from firewall.rule import format_time
from firewall.view import ChangeView

router = APIRouter(prefix="/v1", tags=["changes"])


class WhichChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: int | None = Field(None, ge=1, le=1 << 62, description="One change. Absent: all that wait.")


def change_json(view: ChangeView) -> dict[str, Any]:
    ended = None if view.ended_at is None else format_time(view.ended_at)
    times = {"made_at": format_time(view.made_at), "deadline": format_time(view.deadline), "ended_at": ended}
    return {**asdict(view), **times}


@router.get(
    "/changes",
    response_model=schemas.ChangeList,
    responses=problems(*READ_PROBLEMS),
    summary="List changes that wait for their confirmation",
    dependencies=[NO_QUERY],
)
def list_changes(running: InService) -> Response:
    """And the last that were confirmed or rolled back."""
    views = running.firewall.changes()
    return JsonResponse(
        {
            "pending": [change_json(each) for each in views if each.state == "pending"],
            "recent": [change_json(each) for each in views if each.state != "pending"],
        }
    )


@router.post(
    "/confirm",
    response_model=schemas.ConfirmAnswer,
    responses=problems(403, 404, 421, 422, 503),
    summary="Keep what waits for its confirmation",
)
async def confirm_changes(running: InService, which: Annotated[WhichChange, Query()]) -> Response:
    """All changes that wait, or one. 404 where none does: it may have been taken back already. Each needs the scope
    that making it did."""
    views = await running.change(running.firewall.confirm, which.id, _may())
    return JsonResponse({"confirmed": [change_json(each) for each in views]})


@router.post(
    "/rollback",
    response_model=schemas.RollbackAnswer,
    responses=problems(403, 404, 421, 422, 503),
    summary="Take back at once what waits for its confirmation",
)
async def roll_back_changes(running: InService, which: Annotated[WhichChange, Query()]) -> Response:
    """All changes that wait, or one. The rules and interfaces that it touched are as they were; the others stay. Each
    needs the scope that making it did."""
    views = await running.change(running.firewall.roll_back, which.id, _may())
    return JsonResponse({"rolled_back": [change_json(each) for each in views]})


def _may() -> Callable[[str], bool] | None:
    """Whether the client could have made a change, which is told by its call."""
    acting = ACTING.get()
    if acting is None:
        return None
    return lambda what: suffices(acting.scope, needed(*what.split(" ", 1)))
