"""Owns `ebpf-fw feed list | show | add | delete | refresh | preview` and `ebpf-fw crowdsec`."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli import output
from cli.failure import Json
from cli.session import Session, command, shared_options
from cli.set_lists import ListFormat

app = typer.Typer(help="Lists that fill sets by themselves.", callback=shared_options, no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the feed.")]


@command(app, "list")
def list_feeds(session: Session) -> None:
    """List feeds, how each went, and when it is next."""
    with session.client() as client:
        found = client.get("/v1/feeds")
    if session.as_json:
        output.json_document(found)
        return
    columns = ("NAME", "SET", "ENTRIES", "LAST GOOD", "NEXT", "STATE")
    rows = ((each["name"], each["set"], *_went(each)) for each in found["items"])
    output.table(columns, rows, right=("ENTRIES",), wrapped=("STATE",))


def _went(feed: Json) -> tuple[Any, ...]:
    state = feed["state"]
    return state["entries"], state["last_success"], state["next_refresh"], _state(feed)


def _state(feed: Json) -> str:
    state = feed["state"]
    if error := state["error"]:
        return f"{error['reason']}: {error['detail']}"
    if not feed["enabled"]:
        return "disabled"
    if state["last_success"] is None:
        return "refreshing" if state["refreshing"] else "not fetched yet"
    if not feed["rules"]:
        return f"good, but no rule names @{feed['set']}"
    left_out = (state["reserved"] + state["own"]) if feed["reserved"] == "leave_out" else 0
    return f"good, {left_out:,} left out" if left_out else "good"


@command(app, "show")
def show(session: Session, name: Name) -> None:
    """Show a feed: what it is, how it went."""
    with session.client() as client:
        found = client.get(_path(name))
    if session.as_json:
        output.json_document(found)
        return
    state = found.pop("state")
    error = state.pop("error")
    refusals = ", ".join(f"{reason} {count:,}" for reason, count in state.pop("refusals").items())
    first = ", ".join(state.pop("reserved_first"))
    reserved, own = state.pop("reserved"), state.pop("own")
    told = {
        **found,
        "rules": ", ".join(found["rules"]) or f"none: ebpf-fw rule add --source @{found['set']}",
        **{key: value for key, value in state.items() if key != "format"},
        "own_networks": f"{reserved + own:,} ({first})" if first else reserved + own,
        "refusals": refusals or None,
        "error": f"{error['reason']}: {error['detail']} ({error['times']:,} times)" if error else None,
    }
    output.fields(told.items())


@command(app, "add")
def add(
    session: Session,
    name: Name,
    origin: Annotated[str, typer.Argument(metavar="URL", help="http or https. Files are for the config.")],
    into: Annotated[
        str | None, typer.Option("--set", metavar="SET", help="Default: the feed's name.")
    ] = None,
    form: Annotated[ListFormat | None, typer.Option("--format", help="Default: found out.")] = None,
    refresh: Annotated[str, typer.Option(metavar="TIME", help="Such as 10m, 1h, 1d.")] = "1h",
    keep_reserved: Annotated[
        bool, typer.Option("--keep-reserved", help="Take private networks and this host's addresses too.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse the list for one bad line.")] = False,
) -> None:
    """Make a feed and its set. A rule that names the set is yours to make."""
    body = {
        "name": name, "url": origin, "set": into, "format": form and form.value, "refresh": refresh,
        "reserved": "keep" if keep_reserved else "leave_out", "strict": strict,
    }  # fmt: skip
    with session.client() as client:
        made = client.post("/v1/feeds", body)
    if session.as_json:
        output.json_document(made)
    else:
        output.line(
            f"feed {made['name']} fills set {made['set']}; drop what it lists: ebpf-fw rule add --source @{made['set']}"
        )


@command(app, "delete")
def delete(session: Session, name: Name) -> None:
    """Delete a feed that was made here. Its set stays with what is in it."""
    with session.client() as client:
        client.delete(_path(name))
    if not session.as_json:
        output.line(f"deleted {name}; its set is anybody's now")


@command(app, "refresh")
def refresh(
    session: Session,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Take a list that shrank too much.")] = False,
) -> None:
    """Fetch a feed now, and wait until its list is in force or refused."""
    with session.client() as client:
        answer = client.post(f"{_path(name)}/refresh", None, {"force": str(force).lower()})
    if session.as_json:
        output.json_document(answer)
    elif not answer["changed"]:
        output.line(f"{name} has not changed: {answer['unchanged']:,} entries")
    else:
        output.line(
            f"added {answer['added']:,}, removed {answer['removed']:,}, unchanged {answer['unchanged']:,}"
        )
        _note_left_out(answer["feed"]["state"])


@command(app, "preview")
def preview(session: Session, name: Name) -> None:
    """Fetch a feed and tell what a refresh would change. Changes nothing."""
    with session.client() as client:
        answer = client.post(f"{_path(name)}/preview", None)
    if session.as_json:
        output.json_document(answer)
        return
    if refusal := answer["refusal"]:
        output.line(f"would be refused, {refusal['reason']}: {refusal['detail']}")
    for sign, word in (("+", "added"), ("-", "removed")):
        for each in answer[f"first_{word}"]:
            output.line(f"{sign} {each}")
        if (more := answer[word] - len(answer[f"first_{word}"])) > 0:
            output.line(f"{sign} and {more:,} more")
    output.note(f"would add {answer['added']:,}, remove {answer['removed']:,}, leave {answer['unchanged']:,}")
    _note_left_out(answer)


def _note_left_out(found: Json) -> None:
    if count := found["reserved"] + found["own"]:
        first = ", ".join(found["reserved_first"][:5])
        output.note(f"{count:,} entries overlap networks or addresses of one's own: {first}")
    if found["bad"]:
        output.note(f"{found['bad']:,} bad lines: left out")


def crowdsec(session: Session) -> None:
    """Tell whether CrowdSec's decisions come, and how many hold."""
    with session.client() as client:
        found = client.get("/v1/crowdsec")
    if session.as_json:
        output.json_document(found)
        return
    skipped = ", ".join(f"{reason} {count:,}" for reason, count in (found.get("skipped") or {}).items())
    output.fields((key, skipped or None if key == "skipped" else value) for key, value in found.items())


def _path(name: str) -> str:
    return f"/v1/feeds/{quote(name, safe='')}"
