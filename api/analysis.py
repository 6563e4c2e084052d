"""/v1/analysis: what may be wrong with the rules as they are.

Reads only. Finding it is firewall.ruleset_analysis's.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api import schemas
from api.json_body import JsonResponse
from api.openapi import READ_PROBLEMS, problems
from api.running import InService

router = APIRouter(prefix="/v1/analysis", tags=["rules"])


class Pages(BaseModel):
    """The query: which of the findings."""

    model_config = ConfigDict(extra="forbid")

    page: int = Field(1, ge=1, le=1 << 31)
    page_size: int = Field(100, ge=1, le=1000)


@router.get(
    "",
    response_model=schemas.Analysis,
    responses=problems(*READ_PROBLEMS),
    summary="Find rules that decide nothing",
)
def analyse_rules(running: InService, pages: Annotated[Pages, Query()]) -> Response:
    """Enabled rules that never decide (shadowed, duplicate), that could go without any effect (redundant), that no
    packet can match, or that name interfaces which are not there. Rules are held against each other field by field:
    what is told is certain, but not all there is may be found. Of a million rules the first page takes seconds."""
    found = running.firewall.analysis((pages.page - 1) * pages.page_size, pages.page_size)
    page = {
        "items": [{"id": each.id, **asdict(each.warning)} for each in found.items],
        "total": found.total,
        "page": pages.page,
        "page_size": pages.page_size,
        "total_pages": -(-found.total // pages.page_size),
    }
    return JsonResponse(page)
