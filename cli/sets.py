"""Owns `ebpf-fw set list | create | show | delete | add | remove | entries`.

`import` and `export` are cli.set_lists'.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import orjson
import typer

from cli import output
from cli.asking import AllowLockout, Asking, Confirm, DryRun, tell_effect
from cli.client import Client, Query
from cli.failure import EXIT_NOT_FOUND, Json, failure
from cli.session import Session, command, shared_options
from cli.set_lists import export_list, import_list, set_path

PAGE_SIZE = 1000

app = typer.Typer(
    help="Named lists of addresses, which rules name as @NAME.",
    callback=shared_options,
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the set, without @.")]
Addresses = Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Addresses or CIDR.")]


@command(app, "list")
def list_sets(session: Session) -> None:
    """List sets, with how many entries each has and which rules name it."""
    with session.client() as client:
        found = list(_items(client, "/v1/sets", {}))
    if session.as_json:
        output.json_document({"items": found, "total": len(found)})
        return
    columns = ("NAME", "ENTRIES", "SOURCE", "RULES", "DESCRIPTION")
    rows = (
        (each["name"], each["entries"], each["source"], _rules(each), each["description"]) for each in found
    )
    output.table(columns, rows, right=("ENTRIES",), wrapped=("NAME", "RULES", "DESCRIPTION"))


@command(app, "create")
def create(
    session: Session,
    name: Name,
    description: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    confirm: Confirm = None,
    dry_run: DryRun = False,
) -> None:
    """Make a set, or describe one that is there anew."""
    asking = Asking(confirm, False, dry_run)
    body = {} if description is None else {"description": description}
    with session.client() as client:
        response = client.send("PUT", set_path(name), body=body, query=asking.query())
    made: Json = orjson.loads(response.content)
    if dry_run:
        tell_effect(made, as_json=session.as_json)
        return
    asking.remind()
    if session.as_json:
        output.json_document(made)
    elif response.status_code == 201:
        output.line(f"made {name}: a rule names it as @{name}")
    else:
        output.line(f"{name} is there, with {made['entries']:,} entries")


@command(app, "show")
def show(session: Session, name: Name) -> None:
    """Show a set: how many entries it has, who fills it, which rules name it."""
    with session.client() as client:
        found = client.get(set_path(name))
    if session.as_json:
        output.json_document(found)
    else:
        output.fields((field, _rules(found) if field == "rules" else value) for field, value in found.items())


@command(app, "delete")
def delete(
    session: Session,
    names: Annotated[list[str], typer.Argument(metavar="NAME...")],
    confirm: Confirm = None,
    dry_run: DryRun = False,
) -> None:
    """Delete sets with their entries, one after the other. A set that rules name stays."""
    asking = Asking(confirm, False, dry_run)
    with session.client() as client:
        for name in dict.fromkeys(names):
            tried = client.delete(set_path(name), asking.query())
            if tried is not None:
                tell_effect(tried, as_json=session.as_json)
            elif not session.as_json:
                output.line(f"deleted {name}")
    if not dry_run:
        asking.remind()


@command(app, "add")
def add(
    session: Session,
    name: Name,
    addresses: Addresses,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="They go after this time: seconds, or 90s, 1h, 7d.")
    ] = None,
    comment: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    confirm: Confirm = None,
    allow_lockout: AllowLockout = False,
    dry_run: DryRun = False,
) -> None:
    """Add entries to a set. One that is there already lives on from now."""
    body = {"entries": addresses, "ttl": ttl, "comment": comment}
    asking = Asking(confirm, allow_lockout, dry_run)
    with session.client() as client:
        answer = client.post(f"{set_path(name)}/entries", body, asking.query())
    _tell(session, asking, answer)


@command(app, "remove")
def remove(
    session: Session,
    name: Name,
    addresses: Addresses,
    confirm: Confirm = None,
    allow_lockout: AllowLockout = False,
    dry_run: DryRun = False,
) -> None:
    """Remove entries from a set: just these, not what lies in them."""
    asking = Asking(confirm, allow_lockout, dry_run)
    with session.client() as client:
        response = client.send(
            "DELETE", f"{set_path(name)}/entries", body={"entries": addresses}, query=asking.query()
        )
    answer: Json = orjson.loads(response.content)
    _tell(session, asking, answer)
    if not dry_run and answer["missing"]:
        raise failure(
            EXIT_NOT_FOUND,
            "entry_not_found",
            "Entry not found",
            f"{answer['missing']:,} of {answer['missing'] + answer['removed']:,} entries were not in {name}",
            "an entry is removed as it was added: `ebpf-fw set entries` lists them",
        )


@command(app, "entries")
def entries(
    session: Session,
    name: Name,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Entries that cover it or lie in it.")
    ] = None,
    comment: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Entries with this in their comment.")
    ] = None,
    expires: Annotated[bool | None, typer.Option("--expires/--stays", show_default=False)] = None,
    page: Annotated[int | None, typer.Option(min=1, help="One page only. Default: every page.")] = None,
    page_size: Annotated[int, typer.Option(min=1, max=PAGE_SIZE)] = PAGE_SIZE,
) -> None:
    """List the entries of a set with what they have counted, in order of addresses."""
    query: Query = {
        "address": address,
        "comment": comment,
        "expires": None if expires is None else str(expires).lower(),
        "page_size": page_size,
    }
    with session.client() as client:
        path = f"{set_path(name)}/entries"
        first = client.get(path, {**query, "page": page or 1})
        if session.as_json:
            items = first["items"] if page is not None else list(_following(client, path, query, first))
            output.json_document({**first, "items": items} if page else {"items": items, "total": len(items)})
            return
        while True:
            _print_entries(first["items"])
            if page is not None or first["page"] >= first["total_pages"]:
                break
            first = client.get(path, {**query, "page": first["page"] + 1})
    output.note(f"{first['total']:,} entr{'y' if first['total'] == 1 else 'ies'}")


command(app, "import")(import_list)
command(app, "export")(export_list)


def _tell(session: Session, asking: Asking, answer: Json) -> None:
    if asking.dry_run:
        tell_effect(answer, as_json=session.as_json)
        return
    asking.remind()
    if session.as_json:
        output.json_document(answer)
        return
    said = [f"{word} {answer[word]:,}" for word in ("added", "removed", "refreshed") if answer[word]]
    said += [f"{answer['unchanged']:,} unchanged"] if answer["unchanged"] else []
    output.line(", ".join(said) or "nothing changed")


def _print_entries(items: Iterable[Json]) -> None:
    columns = ("ADDRESS", "PACKETS", "LAST HIT", "EXPIRES", "COMMENT")
    output.table(columns, map(_row, items), right=("PACKETS",), wrapped=("COMMENT",))


def _row(each: Json) -> tuple[Any, ...]:
    stats = each["stats"] or {}
    return each["address"], stats.get("packets"), stats.get("last_hit"), each["expires_at"], each["comment"]


def _rules(each: Json) -> str | None:
    return ", ".join(each["rules"]) or None


def _items(client: Client, path: str, query: Query) -> Iterator[Json]:
    query = {**query, "page_size": PAGE_SIZE}
    return _following(client, path, query, client.get(path, {**query, "page": 1}))


def _following(client: Client, path: str, query: Query, document: Json) -> Iterator[Json]:
    """What is on this page and those after it."""
    while True:
        yield from document["items"]
        if document["page"] >= document["total_pages"]:
            return
        document = client.get(path, {**query, "page": document["page"] + 1})
