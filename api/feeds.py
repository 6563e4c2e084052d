"""/v1/feeds: lists that are fetched again and again, how each went, and what the next one would do.

Owns these addresses. What a feed does is feeds'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api import schemas
from api.errors import RequestRefused
from api.json_body import JsonResponse, JsonRoute
from api.openapi import CHANGE_PROBLEMS, READ_PROBLEMS, problems
from api.running import NO_QUERY, InService, Running
from feeds.errors import FeedFailed
from feeds.feed import FollowedFeed, Preview, without_password
from feeds.sets import Applied
from feeds.subscriptions import Subscriptions
from firewall.errors import InvalidInput, Problem
from firewall.rule import format_time
from firewall.settings import Feed, FeedFields

router = APIRouter(prefix="/v1/feeds", tags=["feeds"], route_class=JsonRoute)


Rules = Mapping[str, Sequence[str]]  # ids of those that name a set, by set


async def rules_of_sets(running: Running) -> Rules:
    """In a thread: it waits for a change under way."""
    views = await asyncio.to_thread(running.firewall.sets)
    return {each.name: each.rules for each in views}


def feed_json(followed: FollowedFeed, rules: Rules) -> dict[str, Any]:
    feed, state = followed.feed, followed.state
    return {
        "name": feed.name,
        "origin": followed.origin,
        "url": None if feed.url is None else without_password(feed.url),
        "file": None if feed.file is None else str(feed.file),
        "set": feed.target,
        "rules": rules.get(feed.target, ()),
        "format": feed.format,
        "refresh": feed.refresh,
        "timeout": feed.timeout,
        "max_bytes": feed.max_bytes,
        "max_shrink": feed.max_shrink,
        "reserved": feed.reserved,
        "strict": feed.strict,
        "enabled": feed.enabled,
        "state": {
            "refreshing": followed.is_refreshing,
            "last_attempt": _time(state.last_attempt),
            "last_success": _time(state.last_success),
            "last_change": _time(state.last_change),
            "next_refresh": _time(followed.next_refresh),
            "error": None
            if state.error_at is None
            else {
                "reason": state.error_reason,
                "detail": state.error_detail,
                "at": _time(state.error_at),
                "times": state.failures,
            },
            "format": state.format or None,
            "entries": state.entries,
            "bad": state.bad,
            "host_bits": state.host_bits,
            "reserved": state.reserved,
            "own": state.own,
            "never_drop": state.never_drop,
            "reserved_first": state.told,
            "refusals": state.refusals,
        },
    }


def _time(moment: float | None) -> str | None:
    return None if moment is None else format_time(round(moment, 3))


def _feeds(running: Running) -> Subscriptions:
    if running.feeds is None:
        raise RequestRefused(503, "starting", "feeds have not started yet", "ask again in a moment")
    return running.feeds


@router.get(
    "",
    response_model=schemas.FeedList,
    responses=problems(*READ_PROBLEMS),
    summary="List feeds",
    dependencies=[NO_QUERY],
)
async def list_feeds(running: InService) -> Response:
    """By name: those of the config and those made here, with how each went."""
    rules = await rules_of_sets(running)
    return JsonResponse({"items": [feed_json(each, rules) for each in _feeds(running).all()]})


@router.get(
    "/{name}",
    response_model=schemas.FeedView,
    responses=problems(404, *READ_PROBLEMS),
    summary="Read a feed",
    dependencies=[NO_QUERY],
)
async def read_feed(running: InService, name: str) -> Response:
    """Its definition, and how it went."""
    return JsonResponse(feed_json(_feeds(running).get(name), await rules_of_sets(running)))


@router.post(
    "",
    status_code=201,
    response_model=schemas.FeedView,
    responses={
        200: {"model": schemas.FeedView, "description": "It is there already, just so."},
        **problems(*CHANGE_PROBLEMS),
    },
    summary="Make a feed",
    dependencies=[NO_QUERY],
)
async def add_feed(running: InService, body: schemas.FeedRequest) -> Response:
    """Its set is made at once and is the feed's alone; the list is fetched soon after. A rule that drops what is listed
    is yours to make: `{"sources": ["@NAME"]}`. Files are for the config alone."""
    followed, is_new = await _feeds(running).add(_feed(body, body.name))
    if is_new:
        await _enter(running, "feed.add", followed)
    return JsonResponse(feed_json(followed, await rules_of_sets(running)), 201 if is_new else 200)


@router.put(
    "/{name}",
    response_model=schemas.FeedView,
    responses=problems(404, *CHANGE_PROBLEMS),
    summary="Replace a feed",
    dependencies=[NO_QUERY],
)
async def replace_feed(running: InService, name: str, body: FeedFields) -> Response:
    """One that was made here. What is not given gets its default."""
    feeds = _feeds(running)
    feeds.get(name)
    replaced = await feeds.replace(_feed(body, name))
    await _enter(running, "feed.change", replaced)
    return JsonResponse(feed_json(replaced, await rules_of_sets(running)))


@router.delete(
    "/{name}",
    status_code=204,
    responses={204: {"description": "Deleted."}, **problems(404, *CHANGE_PROBLEMS)},
    summary="Delete a feed",
    dependencies=[NO_QUERY],
)
async def delete_feed(running: InService, name: str) -> Response:
    """Its set stays with what is in it, and anybody may change it then."""
    feeds = _feeds(running)
    followed = feeds.get(name)
    await feeds.delete(name)
    await _enter(running, "feed.delete", followed)
    return Response(status_code=204)


async def _enter(running: Running, action: str, followed: FollowedFeed) -> None:
    """Into the audit. A user name and password in the URL are not told."""
    feed = followed.feed
    url = None if feed.url is None else without_password(feed.url)
    await running.change(partial(running.firewall.enter, action, feed.name, url=url, set=feed.target))


class RefreshQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    force: bool = Field(
        False, description="Take a list that lost more than max_shrink, and fetch one that is unchanged."
    )


@router.post(
    "/{name}/refresh",
    response_model=schemas.FeedRefreshed,
    responses=problems(404, 502, *CHANGE_PROBLEMS),
    summary="Refresh a feed now",
)
async def refresh_feed(running: InService, name: str, query: Annotated[RefreshQuery, Query()]) -> Response:
    """Answers when the list is in force, or refused: then 502, and the last good list stays."""
    feeds = _feeds(running)
    try:
        applied = await feeds.refresh(name, query.force)
    except FeedFailed as failed:
        raise _failed(name, failed) from None
    done = applied or Applied(unchanged=feeds.get(name).state.entries)
    return JsonResponse(
        {
            "changed": applied is not None,
            "added": done.added,
            "removed": done.removed,
            "refreshed": done.refreshed,
            "unchanged": done.unchanged,
            "feed": feed_json(feeds.get(name), await rules_of_sets(running)),
        }
    )


@router.post(
    "/{name}/preview",
    response_model=schemas.FeedPreview,
    responses=problems(404, *CHANGE_PROBLEMS),
    summary="What a refresh would do",
    dependencies=[NO_QUERY],
)
async def preview_feed(running: InService, name: str) -> Response:
    """Fetches the list and compares it with the set. Changes nothing."""
    return JsonResponse(_preview_json(await _feeds(running).preview(name)))


def _preview_json(preview: Preview) -> dict[str, Any]:
    read, refusal = preview.read, preview.refusal
    return {
        "taken": refusal is None,
        "refusal": None if refusal is None else {"reason": refusal.reason, "detail": str(refusal)},
        "format": None if read is None else read.found.format,
        "added": preview.added,
        "removed": preview.removed,
        "unchanged": preview.unchanged,
        "first_added": preview.sample_added,
        "first_removed": preview.sample_removed,
        "bad": 0 if read is None else read.found.bad,
        "host_bits": 0 if read is None else read.found.host_bits,
        "reserved": 0 if read is None else read.kept.reserved,
        "own": 0 if read is None else read.kept.own,
        "never_drop": 0 if read is None else read.kept.never_drop,
        "reserved_first": () if read is None else read.kept.told,
        "errors": []
        if read is None
        else [{"pointer": each.pointer, "detail": each.detail} for each in read.found.problems],
    }


def _feed(body: FeedFields, name: str) -> Feed:
    """Raises InvalidInput."""
    if body.url is None:
        problem = Problem("/url", "is missing")
        raise InvalidInput("/url: is missing", "the http or https URL of a list", (problem,), "invalid_body")
    fields = {field: getattr(body, field) for field in FeedFields.model_fields}
    try:
        return Feed.model_validate({"name": name, **fields})
    except ValueError:
        problem = Problem("/name", "must be 1 to 64 of A-Z a-z 0-9 . _ : -")
        raise InvalidInput(f"/name: {problem.detail}", "choose another", (problem,), "invalid_body") from None


def _failed(name: str, failed: FeedFailed) -> RequestRefused:
    hint = failed.hint or "the last good list stays in force"
    return RequestRefused(502, "feed_failed", f"feed {name!r} was not taken: {failed.detail}", hint)
