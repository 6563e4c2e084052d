"""Owns `ebpf-fw rule list | show | promote | delete | reset-counters`, and the group that `add` belongs to."""

import sys
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer

from cli import output, rule_add, rule_text
from cli.asking import AllowLockout, Asking, Confirm, DryRun, tell_effect
from cli.choices import Action, Direction
from cli.client import Client, Query
from cli.failure import EXIT_NOT_FOUND, Json, failure
from cli.session import Session, command, shared_options

PAGE_SIZE = 1000

app = typer.Typer(
    help="Add, list, show and delete rules, and reset their counters.",
    callback=shared_options,
    no_args_is_help=True,
)


command(app, "add")(rule_add.add)


@command(app, "list")
def list_rules(
    session: Session,
    direction: Annotated[Direction | None, typer.Option()] = None,
    action: Annotated[Action | None, typer.Option()] = None,
    enabled: Annotated[bool | None, typer.Option("--enabled/--disabled", show_default=False)] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeat it for several.", show_default=False)
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Rules that cover this address.")
    ] = None,
    unused_for: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Enabled rules of that age that matched nothing since, such as 30d."
        ),
    ] = None,
    page: Annotated[int | None, typer.Option(min=1, help="One page only. Default: every page.")] = None,
    page_size: Annotated[int, typer.Option(min=1, max=PAGE_SIZE)] = PAGE_SIZE,
) -> None:
    """List rules, every page of them unless one is asked for."""
    query: Query = {
        "direction": direction,
        "action": action,
        "enabled": enabled,
        "label": label,
        "address": address,
        "unused_for": unused_for,
        "page_size": page_size,
    }
    with session.client() as client:
        first = client.get("/v1/rules", {**query, "page": page or 1})
        if session.as_json and page is not None:
            output.json_document(first)
        elif session.as_json:
            _print_pages_as_json(client, query, first)
        else:
            _print_pages(client, query, first, only=page)


@command(app, "show")
def show(session: Session, rule_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Show one rule with all its fields and its counters."""
    with session.client() as client:
        rule = client.get(_path(rule_id))
    if session.as_json:
        output.json_document(rule)
    else:
        output.fields(rule_text.field_pairs(rule))


@command(app, "reset-counters")
def reset_counters(session: Session, rule_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Let a rule count from 0 again."""
    with session.client() as client:
        rule: Json = orjson.loads(client.send("POST", f"{_path(rule_id)}/reset-counters").content)
    if session.as_json:
        output.json_document(rule)
    else:
        output.line(f"reset the counters of {rule['id']}")


@command(app, "promote")
def promote(
    session: Session,
    rule_id: Annotated[str, typer.Argument(metavar="ID")],
    confirm: Confirm = None,
    allow_lockout: AllowLockout = False,
    dry_run: DryRun = False,
) -> None:
    """Make a rule that observes decide. For one that does, nothing changes."""
    asking = Asking(confirm, allow_lockout, dry_run)
    with session.client() as client:
        rule = client.post(f"{_path(rule_id)}/promote", {}, asking.query())
    if dry_run:
        tell_effect(rule, as_json=session.as_json)
        return
    asking.remind()
    if session.as_json:
        output.json_document(rule)
    else:
        output.line(f"promoted {rule['id']}: {rule_text.action_text(rule)} {rule_text.match_text(rule)}")


@command(app, "delete")
def delete(
    session: Session,
    rule_ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    confirm: Confirm = None,
    allow_lockout: AllowLockout = False,
    dry_run: DryRun = False,
) -> None:
    """Delete rules. Several are deleted in one change, all or none."""
    asking = Asking(confirm, allow_lockout, dry_run)
    wanted = list(dict.fromkeys(rule_ids))
    with session.client() as client:
        if len(wanted) == 1:
            tried = client.delete(_path(wanted[0]), asking.query())
            answer: Json = tried or {"added": 0, "deleted": 1, "unchanged": 0, "ids": []}
        else:
            answer = client.post("/v1/rules/batch", {"delete": wanted}, asking.query())
    if dry_run:
        tell_effect(answer, as_json=session.as_json)
        return
    asking.remind()
    if session.as_json:
        output.json_document(answer)
    else:
        output.line(f"deleted {answer['deleted']}")
    if answer["deleted"] < len(wanted):
        raise failure(
            EXIT_NOT_FOUND,
            "rule_not_found",
            "Rule not found",
            f"{len(wanted) - answer['deleted']} of {len(wanted)} rules were not there",
        )


def _print_pages(client: Client, query: Query, document: Json, only: int | None) -> None:
    """A table a page, so that a long list appears at once and never has to fit in memory."""
    while True:
        columns = ("ID", "ACTION", "PRIO", "DIRECTION", "MATCH", "PACKETS", "NOTE")
        output.table(
            columns,
            map(_row, document["items"]),
            right=("PRIO", "PACKETS"),
            wrapped=("ID", "MATCH", "NOTE"),
        )
        if only is not None or document["page"] >= document["total_pages"]:
            break
        document = client.get("/v1/rules", {**query, "page": document["page"] + 1})
    count = f"{document['total']:,} rule{'' if document['total'] == 1 else 's'}"
    output.note(count if only is None else f"page {document['page']} of {document['total_pages']}, {count}")


def _print_pages_as_json(client: Client, query: Query, document: Json) -> None:
    """All pages as the one page that would hold them, a rule a line, written as they come."""
    write = sys.stdout.write
    write('{"items": [')
    count = 0
    while True:
        for rule in document["items"]:
            write(("\n" if count == 0 else ",\n") + orjson.dumps(rule).decode())
            count += 1
        if document["page"] >= document["total_pages"]:
            break
        document = client.get("/v1/rules", {**query, "page": document["page"] + 1})
    write(f'\n], "total": {count}, "page": 1, "page_size": {count}, "total_pages": 1}}\n')


def _row(rule: Json) -> tuple[Any, ...]:
    stats = rule.get("stats") or {}
    return (
        rule["id"],
        rule["action"],
        str(rule["priority"]),
        rule["direction"],
        rule_text.match_text(rule),
        stats.get("packets"),
        rule_text.note_text(rule),
    )


def _path(rule_id: str) -> str:
    return f"/v1/rules/{quote(rule_id, safe='')}"
