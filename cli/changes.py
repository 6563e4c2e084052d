"""Owns `ebpf-fw changes | confirm | rollback`."""

from typing import Annotated, Any

import typer

from cli import output
from cli.failure import Json
from cli.session import Session

Number = Annotated[
    int | None, typer.Argument(metavar="[ID]", help="One change. Default: all that wait.", show_default=False)
]


def changes(session: Session) -> None:
    """List the changes that wait for their confirmation, and the last that ended."""
    with session.client() as client:
        answer = client.get("/v1/changes")
    if session.as_json:
        output.json_document(answer)
        return
    columns = ("ID", "STATE", "CHANGE", "MADE", "LEFT", "ADDED", "REMOVED", "CHANGED", "NOTE")
    rows = [_row(each) for each in (*answer["pending"], *answer["recent"])]
    output.table(
        columns, rows, right=("ID", "LEFT", "ADDED", "REMOVED", "CHANGED"), wrapped=("CHANGE", "NOTE")
    )


def confirm(session: Session, change: Number = None) -> None:
    """Keep the changes that were made with --confirm."""
    _end(session, "confirm", "confirmed", change)


def rollback(session: Session, change: Number = None) -> None:
    """Take back at once the changes that were made with --confirm."""
    _end(session, "rollback", "rolled_back", change)


def _end(session: Session, call: str, state: str, change: int | None) -> None:
    with session.client() as client:
        answer = client.post(f"/v1/{call}", None, {"id": change})
    if session.as_json:
        output.json_document(answer)
        return
    for each in answer[state]:
        output.line(f"{state.replace('_', ' ')} {each['id']}: {each['what']}")


def _row(each: Json) -> tuple[Any, ...]:
    left = None if each["seconds_left"] is None else f"{each['seconds_left']:.0f} s"
    counts = (each["added"], each["removed"], each["changed"])
    return (
        str(each["id"]),
        each["state"],
        each["what"],
        each["made_at"],
        left,
        *counts,
        each["reason"] or None,
    )
