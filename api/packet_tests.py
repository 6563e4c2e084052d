"""/v1/test: what the filters in force would do with a packet.

Owns the three forms of the question (a description, bytes in hex, a capture) and the JSON of the answer. Judging is the
enforcer's.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api import schemas
from api.errors import RequestRefused
from api.json_body import JsonRequest, JsonResponse
from api.openapi import CHANGE_PROBLEMS, problems
from api.running import InService
from firewall.capture_file import captured_frames
from firewall.described import description_from_fields
from firewall.enforcer import Enforcer
from firewall.errors import InvalidInput, Problem
from firewall.layout import HOOKS
from firewall.match import format_flags, format_protocol
from firewall.packet import Packet
from firewall.view import JudgementView

router = APIRouter(prefix="/v1/test", tags=["test"])
MOST_PACKETS = 1000
MOST_FRAME_BYTES = 65_549  # the largest IP packet behind an Ethernet header
JSON = "application/json"
CAPTURES = ("application/vnd.tcpdump.pcap", "application/x-pcapng", "application/octet-stream")
_SEPARATORS = re.compile(r"[\s:]+|0x")
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


class CaptureQuery(BaseModel):
    """For a capture; a JSON body says these itself."""

    model_config = ConfigDict(extra="forbid")

    hook: schemas.Hook | None = Field(None, description="Default: ingress.")
    interface: str | None = Field(None, description="May be left out where one is protected.")
    limit: int | None = Field(None, ge=1, le=MOST_PACKETS, description=f"Default: {MOST_PACKETS}.")


@router.post(
    "",
    response_model=schemas.Judgement | schemas.JudgementList,
    responses=problems(404, *CHANGE_PROBLEMS),
    summary="Test a packet",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/PacketFields"}},
                **dict.fromkeys(CAPTURES, _BINARY),
            },
        }
    },
)
async def test_packet(
    request: Request, running: InService, query: Annotated[CaptureQuery, Query()]
) -> Response:
    """Judged by the loaded programs over the maps in force. No counter moves and no event is told.

    A description or a frame in hex is answered with one verdict; a pcap or pcapng file with one for each packet.
    """
    firewall = running.firewall
    media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if media_type in CAPTURES:
        content = await request.body()
        return JsonResponse(await asyncio.to_thread(_judge_capture, firewall, content, query))
    if given := query.model_dump(exclude_none=True):
        found = tuple(Problem(f"?{name}", "stands in the body, where that is JSON") for name in given)
        raise InvalidInput(f"{found[0].pointer}: {found[0].detail}", "see /docs", found, "invalid_query")
    body = await JsonRequest(request.scope, request.receive).json()
    if not isinstance(body, dict):
        raise InvalidInput("the body: must be a JSON object", "see /docs", code="invalid_body")
    return JsonResponse(await asyncio.to_thread(_judge_one, firewall, body))


def _judge_one(firewall: Enforcer, fields: Mapping[str, Any]) -> dict[str, Any]:
    rest = {
        name: value for name, value in fields.items() if name not in ("hook", "interface", "link", "frame")
    }
    hook, link = fields.get("hook") or HOOKS[0], fields.get("link")
    _check_choice("hook", hook, HOOKS)
    if fields.get("frame") is None:
        if link is not None:
            raise _invalid("link", "belongs to a frame")
        description = description_from_fields(rest)
        place = firewall.place(HOOKS.index(hook), _interface(fields))
        return judgement_json(firewall.judge_described(place, description))
    if given := [name for name, value in rest.items() if value is not None]:
        raise _invalid(given[0], "cannot stand beside frame, which says all of the packet")
    frame = _frame(fields["frame"])
    if link is not None:
        _check_choice("link", link, ("ethernet", "ip"))
    place = firewall.place(HOOKS.index(hook), _interface(fields))
    has_ethernet = place.has_ethernet if link is None else link == "ethernet"
    return judgement_json(firewall.judge_frame(place, frame, len(frame), has_ethernet))


def _judge_capture(firewall: Enforcer, content: bytes, query: CaptureQuery) -> dict[str, Any]:
    place = firewall.place(HOOKS.index(query.hook or HOOKS[0]), query.interface)
    limit = query.limit or MOST_PACKETS
    frames = list(islice(captured_frames(content), limit + 1))
    if not frames:
        raise InvalidInput("the capture holds no packet", code="invalid_capture")
    items = []
    for number, each in enumerate(frames[:limit], 1):
        judged = firewall.judge_frame(place, each.frame, each.length, each.has_ethernet)
        items.append({"number": number, **judgement_json(judged)})
        time.sleep(0)  # changes may come in between
    return {"items": items, "total": len(items), "truncated": len(frames) > limit}


def _interface(fields: Mapping[str, Any]) -> str | None:
    name = fields.get("interface")
    if name is not None and not isinstance(name, str):
        raise _invalid("interface", "must be text")
    return name


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _invalid(name, f"{value!r} is not one of {', '.join(choices)}")


def _frame(value: object) -> bytes:
    """Hex digits; blanks, colons and 0x between them are passed over."""
    try:
        frame = bytes.fromhex(_SEPARATORS.sub("", value if isinstance(value, str) else "?"))
    except ValueError:
        raise _invalid("frame", "must be bytes in hex, such as 4500001c...") from None
    if not frame:
        raise _invalid("frame", "holds no byte")
    if len(frame) > MOST_FRAME_BYTES:
        raise RequestRefused(
            413, "frame_too_long", f"the frame has {len(frame)} bytes; {MOST_FRAME_BYTES} are the most"
        )
    return frame


def _invalid(name: str, detail: str) -> InvalidInput:
    return InvalidInput(f"/{name}: {detail}", "see /docs", (Problem(f"/{name}", detail),), "invalid_packet")


def judgement_json(view: JudgementView) -> dict[str, Any]:
    return {
        "hook": view.hook,
        "interface": view.interface,
        "verdict": view.verdict,
        "reason": view.reason,
        "rule": view.rule and asdict(view.rule),
        "also_matched": [asdict(each) for each in view.also_matched],
        "also_matched_total": view.also_matched_total,
        "consistent": view.consistent,
        "packet": view.packet and packet_json(view.packet),
        "notes": list(view.notes),
    }


def packet_json(packet: Packet) -> dict[str, Any]:
    address = IPv4Address if packet.version == 4 else IPv6Address
    cut = "later" if packet.is_later_fragment else "first" if packet.is_fragment else "none"
    has_icmp = packet.icmp_type is not None
    return {
        "family": f"ipv{packet.version}",
        "source": str(address(packet.source)),
        "destination": str(address(packet.destination)),
        "protocol": format_protocol(packet.protocol),
        "source_port": packet.source_port,
        "destination_port": packet.destination_port,
        "tcp_flags": None if packet.tcp_flags is None else format_flags(packet.tcp_flags),
        "icmp_type": f"{packet.icmp_type}/{packet.icmp_code}" if has_icmp else None,
        "fragment": cut,
        "length": packet.length,
    }
