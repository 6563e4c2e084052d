"""What every change may be asked with: `confirm_within`, `allow_lockout`, `dry_run`, and the header `Prefer: dry-run`.

Owns reading them, who the client is, and the answers that they lead to. What they mean is the enforcer's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Scope

from api import schemas
from api.json_body import JsonResponse
from api.running import Running
from firewall.caution import CONFIRM_LEAST_S, CONFIRM_MOST_S, Caution
from firewall.datapath import Connection
from firewall.rule import format_time
from firewall.view import Effect

T = TypeVar("T")
DRY_RUN = "dry-run"


class ChangeQuery(BaseModel):
    """The query of every change."""

    model_config = ConfigDict(extra="forbid")

    confirm_within: int | None = Field(
        None,
        ge=CONFIRM_LEAST_S,
        le=CONFIRM_MOST_S,
        description="Seconds: the change is taken back then, unless POST /v1/confirm comes before.",
        examples=[60],
    )
    allow_lockout: bool = Field(
        False, description="Also where it drops an SSH session of this host, this client or the API's port."
    )
    dry_run: bool = Field(False, description="Only say what it would do. `Prefer: dry-run` is the same.")


Prefer = Annotated[str | None, Header(description="`dry-run`: only say what the change would do.")]

CONFIRM_HEADERS: dict[str, Any] = {
    "Confirm-Id": {
        "description": "With confirm_within: number of the change.",
        "schema": {"type": "integer"},
    },
    "Confirm-By": {"description": "With confirm_within: it goes then.", "schema": {"type": "string"}},
}


def caution(scope: Scope, query: ChangeQuery, prefer: str | None) -> Caution:
    return Caution(
        f"{scope['method']} {scope['path']}",
        query.confirm_within,
        query.allow_lockout,
        query.dry_run or prefers_dry_run(prefer),
        client_of(scope),
    )


async def asked(request: Request, query: Annotated[ChangeQuery, Query()], prefer: Prefer = None) -> Caution:
    return caution(request.scope, query, prefer)


Asked = Annotated[Caution, Depends(asked)]


def prefers_dry_run(prefer: str | None) -> bool:
    """RFC 7240: preferences are separated by commas, each with parameters behind a semicolon."""
    names = (each.partition(";")[0].partition("=")[0] for each in (prefer or "").split(","))
    return any(name.strip().lower() == DRY_RUN for name in names)


@lru_cache(maxsize=1024)
def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """As IPv4 where it stands for such an address. Raises ValueError."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address


def client_of(scope: Scope) -> Connection | None:
    """None over a Unix socket."""
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or client[1] is None or server[1] is None:
        return None
    try:
        remote, local = _plain(client[0]), _plain(server[0])
    except ValueError:
        return None
    if remote.version != local.version:
        return None
    return Connection(remote.version, int(local), server[1], int(remote), client[1])


async def perform(
    running: Running, asking: Caution, call: Callable[[], T], answer: Callable[[T], Response]
) -> Response:
    """Makes the change in the writer thread; `answer` for what it answers."""
    done = await running.cautious_change(asking, call)
    if done.effect is not None:
        return effect_response(done.effect, asking)
    response = answer(done.value)  # type: ignore[arg-type]
    if done.pending is not None:
        response.headers["Confirm-Id"] = str(done.pending.id)
        response.headers["Confirm-By"] = format_time(done.pending.deadline)
    return response


def effect_response(effect: Effect, asking: Caution) -> Response:
    content = {
        "dry_run": True,
        "added": effect.added,
        "removed": effect.removed,
        "changed": effect.changed,
        "unchanged": effect.unchanged,
        "shadowed": effect.shadowed,
        "lockouts": effect.lockouts,
        "confirm_within": asking.confirm_within_s,
    }
    return JsonResponse(content, headers={"Preference-Applied": DRY_RUN})


def tried(model: type[BaseModel] | None, description: str = "Done.") -> dict[int | str, dict[str, Any]]:
    """The `responses` of a change that answers 200: `model`, or what it would do."""
    return {
        200: {
            "model": schemas.Effect if model is None else model | schemas.Effect,
            "description": f"{description} With dry_run: what it would do.",
            "headers": CONFIRM_HEADERS,
        }
    }
