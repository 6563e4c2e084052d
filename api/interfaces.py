"""/v1/interfaces: which interfaces are protected, and how.

Owns these addresses; attaching is the enforcer's.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response

from api import schemas
from api.asking import CONFIRM_HEADERS, Asked, perform, tried
from api.json_body import JsonResponse, JsonRoute
from api.openapi import CHANGE_PROBLEMS, READ_PROBLEMS, problems
from api.running import NO_QUERY, InService

router = APIRouter(prefix="/v1/interfaces", tags=["interfaces"], route_class=JsonRoute)


@router.get(
    "",
    response_model=schemas.InterfaceList,
    responses=problems(*READ_PROBLEMS),
    summary="List interfaces",
    dependencies=[NO_QUERY],
)
def list_interfaces(running: InService) -> Response:
    """Every interface that the config or the API asks to protect, present or not."""
    views = running.firewall.interfaces()
    return JsonResponse({"items": views, "total": len(views)})


@router.get(
    "/{name}",
    response_model=schemas.InterfaceState,
    responses=problems(404, *READ_PROBLEMS),
    summary="Read an interface",
    dependencies=[NO_QUERY],
)
def read_interface(running: InService, name: str) -> Response:
    """What was asked for, what the kernel has, and why they differ."""
    return JsonResponse(running.firewall.interface(name))


@router.put(
    "/{name}",
    responses={**tried(schemas.InterfaceState), **problems(404, *CHANGE_PROBLEMS)},
    summary="Attach to an interface",
)
async def attach_interface(
    running: InService, asked: Asked, name: str, body: schemas.InterfaceRequest | None = None
) -> Response:
    """Or change how it is attached. It holds after a restart too. The body may be absent."""
    how = body or schemas.InterfaceRequest()
    attach = partial(running.firewall.attach, name, how.mode, how.ingress, how.egress, how.force)
    return await perform(running, asked, attach, JsonResponse)


@router.delete(
    "/{name}",
    status_code=204,
    responses={
        **tried(None, "Nothing was detached."),
        204: {"description": "Detached.", "headers": CONFIRM_HEADERS},
        **problems(404, *CHANGE_PROBLEMS),
    },
    summary="Detach from an interface",
)
async def detach_interface(running: InService, asked: Asked, name: str) -> Response:
    """Both hooks, now and after a restart. The rules stay."""
    detach = partial(running.firewall.detach, name)
    return await perform(running, asked, detach, lambda _: Response(status_code=204))
