"""Owns `ebpf-fw interface list | attach | detach`."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli import output
from cli.asking import AllowLockout, Asking, Confirm, DryRun, tell_effect
from cli.choices import Mode
from cli.failure import Json
from cli.session import Session, command, shared_options

app = typer.Typer(help="Attach to interfaces and detach.", callback=shared_options, no_args_is_help=True)


Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@command(app, "list")
def list_interfaces(session: Session) -> None:
    """List the interfaces that are configured, and what is attached to them."""
    with session.client() as client:
        answer = client.get("/v1/interfaces")
    if session.as_json:
        output.json_document(answer)
        return
    print_hooks([row for item in answer["items"] for row in _rows(item)])


@command(app, "attach")
def attach(
    session: Session,
    name: Name,
    mode: Annotated[Mode, typer.Option(help="auto is native, else generic.")] = Mode.auto,
    ingress: Annotated[bool, typer.Option("--ingress/--no-ingress")] = True,
    egress: Annotated[bool, typer.Option("--egress/--no-egress")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace another owner's XDP program.")] = False,
    confirm: Confirm = None,
    allow_lockout: AllowLockout = False,
    dry_run: DryRun = False,
) -> None:
    """Attach the filter to an interface, or change how it is attached."""
    body: Json = {"mode": mode.value, "ingress": ingress, "egress": egress}
    if force:
        body["force"] = True
    asking = Asking(confirm, allow_lockout, dry_run)
    with session.client() as client:
        answer = client.put(_path(name), body, query=asking.query())
    if dry_run:
        tell_effect(answer, as_json=session.as_json)
        return
    asking.remind()
    if session.as_json:
        output.json_document(answer)
    else:
        print_hooks(_rows(answer))


@command(app, "detach")
def detach(
    session: Session,
    name: Name,
    confirm: Confirm = None,
    allow_lockout: AllowLockout = False,
    dry_run: DryRun = False,
) -> None:
    """Detach both hooks of an interface and forget it. The rules stay."""
    asking = Asking(confirm, allow_lockout, dry_run)
    with session.client() as client:
        tried = client.delete(_path(name), asking.query())
    if tried is not None:
        tell_effect(tried, as_json=session.as_json)
        return
    asking.remind()
    if session.as_json:
        output.json_document({"name": name, "detached": True})
    else:
        output.line(f"detached {name}")


def print_hooks(rows: list[tuple[Any, ...]]) -> None:
    columns = ("INTERFACE", "HOOK", "ATTACHED", "MODE", "PROGRAM", "NOTE")
    output.table(columns, rows, wrapped=("NOTE",))


def hook_row(interface: str, hook: Json, notes: list[str]) -> tuple[Any, ...]:
    program = None
    if hook.get("program_id"):
        program = " ".join(str(part) for part in (hook["program_id"], hook.get("program_name")) if part)
    if hook.get("error"):
        notes = [*notes, str(hook["error"])]
    return interface, hook["hook"], hook["attached"], hook.get("mode"), program, "; ".join(notes) or None


def _rows(item: Json) -> list[tuple[Any, ...]]:
    rows = []
    for hook in item["hooks"]:
        notes = []
        if hook["hook"] == "ingress":
            if hook.get("mode") != item["mode"]:
                notes.append(f"{item['mode']} was asked for")
            if item.get("native_unavailable"):
                notes.append(f"not native: {item['native_unavailable']}")
        rows.append(hook_row(item["name"], hook, notes))
    if not item["present"]:
        rows = [
            (item["name"], None, False, None, None, f"no such interface now; {item['mode']} was asked for")
        ]
    return rows


def _path(name: str) -> str:
    return f"/v1/interfaces/{quote(name, safe='')}"
