"""Owns `ebpf-fw panic on | off | status`."""

from typing import Annotated

import typer

from cli import output
from cli.failure import Json
from cli.session import Session, command, shared_options
from cli.status import panic_text

app = typer.Typer(
    help="Block everything but never_drop and management connections.",
    callback=shared_options,
    no_args_is_help=True,
)


@command(app, "on")
def on(
    session: Session,
    time: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="Such as 90s, 10m, 2h; at most 24h. [default: 10m]"),
    ] = None,
) -> None:
    """Block everything now. It ends by itself; repeating it starts the time anew."""
    body: Json = {"on": True}
    if time is not None:
        body["ttl"] = time
    _ask(session, body)


@command(app, "off")
def off(session: Session) -> None:
    """Put the rules in force again."""
    _ask(session, {"on": False})


@command(app, "status")
def show(session: Session) -> None:
    """Tell whether it is on, and until when."""
    with session.client() as client:
        _tell(session, client.get("/v1/panic"))


def _ask(session: Session, body: Json) -> None:
    with session.client() as client:
        _tell(session, client.post("/v1/panic", body))


def _tell(session: Session, answer: Json) -> None:
    if session.as_json:
        output.json_document(answer)
    else:
        output.line(f"panic is {panic_text(answer)}")
