"""Owns `ebpf-fw token create | list | revoke`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli import output
from cli.failure import EXIT_USAGE, Failure, Json, failure
from cli.session import Session, command, shared_options

app = typer.Typer(
    help="Who may use the API over TCP.",
    callback=shared_options,
    no_args_is_help=True,
)

Scope = Annotated[
    Literal["read", "rules", "admin"],
    typer.Option(
        "--scope", help="read: look. rules: change rules and sets too. admin: everything.", show_default=False
    ),
]


@command(app, "create")
def create(
    session: Session,
    scope: Scope,
    name: Annotated[str | None, typer.Argument(help="Default: the service makes one.")] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="TIME",
            help="After so long (90d, 12h), or at a moment (2030-01-01T00:00:00Z). Default: never.",
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Write the token there, for its owner alone."),
    ] = None,
) -> None:
    """Make a token. It is shown this once."""
    body: Json = {"scope": scope}
    if name is not None:
        body["name"] = name
    if expires is not None:
        body["expires_at" if "T" in expires or expires.count("-") == 2 else "ttl"] = expires
    place = _new_file(write) if write is not None else None
    try:
        with session.client() as client:
            made = client.post("/v1/tokens", body)
    except (Failure, typer.BadParameter):
        if write is not None and place is not None:
            os.close(place)
            write.unlink()
        raise
    if place is not None:
        with os.fdopen(place, "w", encoding="ascii") as file:
            file.write(f"{made['token']}\n")
    if session.as_json:
        output.json_document(made)
        return
    until = "never expires" if made["expires_at"] is None else f"expires at {made['expires_at']}"
    if write is None:
        sys.stdout.write(f"{made['token']}\n")
        output.note(f"{made['name']}: scope {made['scope']}, {until}. It is not shown again.")
    else:
        output.line(f"{made['name']}: scope {made['scope']}, {until}; written to {write}")


@command(app, "list")
def show(session: Session) -> None:
    """List the tokens that were not revoked."""
    with session.client() as client:
        answer = client.get("/v1/tokens")
    if session.as_json:
        output.json_document(answer)
        return
    rows = [
        (
            each["name"],
            each["scope"],
            each["created_at"],
            each["created_by"],
            f"{each['expires_at']} (expired)" if each["expired"] else each["expires_at"] or "never",
            each["last_used"] or "never",
        )
        for each in answer["items"]
    ]
    output.table(("NAME", "SCOPE", "CREATED", "BY", "EXPIRES", "LAST USED"), rows)


@command(app, "revoke")
def revoke(session: Session, names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Revoke tokens, at once and for good."""
    with session.client() as client:
        for name in names:
            client.delete(f"/v1/tokens/{name}")
            if not session.as_json:
                output.line(f"revoked {name}")


def _new_file(path: Path) -> int:
    """Opened before the token is made: one that could not be kept would be lost."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        detail = f"cannot make {path}: {error.strerror}"
        raise failure(
            EXIT_USAGE,
            "cannot_write",
            "Cannot write",
            detail,
            hint="name a file that is not there yet; nothing was made",
        ) from None
