"""Owns `ebpf-fw audit`."""

from typing import Annotated, Any, Literal

import typer

from cli import output
from cli.failure import Json
from cli.session import Session

_MOST_PAGE = 1000


def audit(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 100,
    kind: Annotated[
        Literal["change", "access"] | None,
        typer.Option("--kind", help="access: what was denied.", show_default=False),
    ] = None,
    actor: Annotated[
        str | None, typer.Option("--actor", metavar="WHO", help="Such as token:ci, uid:0, service.")
    ] = None,
    action: Annotated[
        str | None, typer.Option("--action", metavar="WHAT", help="Such as rule.add; rule is all of rules.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="ID", help="Such as a rule's id.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Such as 2030-01-01T00:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this moment.")] = None,
) -> None:
    """Who changed what, and whose access was denied. The newest first."""
    query = {
        "kind": kind,
        "actor": actor,
        "action": action,
        "target": target,
        "since": since,
        "until": until,
    }
    items: list[Json] = []
    before: int | None = None
    with session.client() as client:
        while len(items) < limit:
            size = min(limit - len(items), _MOST_PAGE)
            page = client.get("/v1/audit", {**query, "page_size": size, "before": before})
            items += page["items"]
            before = page["next_before"]
            if before is None:
                break
    if session.as_json:
        output.json_document({"items": items, "next_before": before})
        return
    columns = ("ID", "TIME", "ACTOR", "SOURCE", "ACTION", "TARGET", "REASON", "NOTE")
    output.table(columns, [_row(each) for each in items], right=("ID",), wrapped=("REASON", "NOTE"))


def _row(each: Json) -> tuple[Any, ...]:
    summary = each["summary"] or {}
    note = ", ".join(f"{name} {value}" for name, value in summary.items() if name != "digest")
    names = ("time", "actor", "source", "action", "target", "reason")
    return (str(each["id"]), *(each[name] for name in names), note or None)
