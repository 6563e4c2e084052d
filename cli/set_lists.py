"""Owns `ebpf-fw set import` and `set export`: whole lists into a set and out of it."""

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO
from urllib.parse import quote

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn

from cli import output
from cli.asking import AllowLockout, Asking, Confirm, DryRun, tell_effect
from cli.export import copied_to
from cli.failure import Failure, Json
from cli.session import Session

CHUNK_BYTES = 1 << 18
SHOWN_BAD_LINES = 10
_MEDIA_TYPES = {".csv": "text/csv", ".ndjson": "application/x-ndjson", ".jsonl": "application/x-ndjson"}


class ListMode(StrEnum):
    ADD = "add"
    DELETE = "delete"
    REPLACE = "replace"


class ListFormat(StrEnum):
    plain = "plain"
    ipset = "ipset"
    nft = "nft"
    csv = "csv"
    ndjson = "ndjson"
    spamhaus = "spamhaus"


class ExportFormat(StrEnum):
    ndjson = "ndjson"
    plain = "plain"
    ipset = "ipset"


def import_list(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the set, without @.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", allow_dash=True, help="- is standard input.")],
    mode: Annotated[ListMode, typer.Option(help="What becomes of the entries.")] = ListMode.ADD,
    form: Annotated[
        ListFormat | None, typer.Option("--format", help="Default: told by the name or by how it begins.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse the list for one bad line.")] = False,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of entries without one: seconds, or 90s, 1h, 7d.")
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="With --mode replace: an empty list empties the set.")
    ] = False,
    confirm: Confirm = None,
    allow_lockout: AllowLockout = False,
    dry_run: DryRun = False,
) -> None:
    """Import a list into a set, as one change: plain text, ipset save, nft -j list set, CSV, NDJSON, Spamhaus.

    Bad lines are told and left out, host bits of a CIDR are masked.
    """
    asking = Asking(confirm, allow_lockout, dry_run)
    query = {
        "mode": mode.value,
        "format": form and form.value,
        "strict": str(strict).lower(),
        "ttl": ttl,
        "allow_empty": str(allow_empty).lower(),
        **asking.query(),
    }
    media_type = _MEDIA_TYPES.get(file.suffix.lower(), "application/octet-stream")
    with session.client() as client, _opened(file) as (source, size), _progress(size) as (progress, task):
        sending = _Sending(source, progress, task)
        try:
            path = f"{set_path(name)}/import"
            answer = client.upload(path, sending.parts(), size, media_type, query)
        except Failure as refusal:
            raise Failure(_with_lines(str(file), refusal.problem), refusal.exit_code) from None
        except KeyboardInterrupt:
            output.note(_stopped(str(file), sending.is_whole))
            raise
    if dry_run:
        tell_effect(answer, as_json=session.as_json)
        return
    asking.remind()
    if session.as_json:
        output.json_document(answer)
    else:
        _tell(str(file), answer)


def export_list(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the set, without @.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", allow_dash=True, help="Default: standard output.")
    ] = None,
    form: Annotated[
        ExportFormat,
        typer.Option("--format", help="ndjson keeps times and comments; ipset is for ipset restore."),
    ] = ExportFormat.ndjson,
) -> None:
    """Export the entries of a set, as `set import` reads them again."""
    with (
        session.client() as client,
        client.stream("GET", f"{set_path(name)}/export", query={"format": form.value}) as response,
    ):
        copied_to(file, response.iter_bytes())
    if file is not None and str(file) != "-":
        if session.as_json:
            output.json_document({"file": str(file)})
        else:
            output.line(f"wrote {file}")


def set_path(name: str) -> str:
    return f"/v1/sets/{quote(name.removeprefix('@'), safe='')}"


class _Sending:
    """A list on its way. `is_whole`: all of it is sent."""

    def __init__(self, source: BinaryIO, progress: Progress, task: TaskID) -> None:
        self._source, self._progress, self._task = source, progress, task
        self.is_whole = False

    def parts(self) -> Iterator[bytes]:
        while part := self._source.read(CHUNK_BYTES):
            yield part
            self._progress.advance(self._task, len(part))
        self.is_whole = True
        self._progress.update(self._task, description="import")


@contextmanager
def _opened(file: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """And its size, where that is known before it is read."""
    if str(file) == "-":
        yield sys.stdin.buffer, None
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    with opened:
        found = os.fstat(opened.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise typer.BadParameter(f"{file}: is a directory")
        yield opened, found.st_size if stat.S_ISREG(found.st_mode) else None


@contextmanager
def _progress(size: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """Of bytes, on stderr, silent where that is no terminal."""
    shown = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with output.progress(*shown) as progress:
        yield progress, progress.add_task("send", total=size)


def _stopped(name: str, is_whole: bool) -> str:
    if not is_whole:
        return f"stopped: nothing of {name} was imported"
    return f"stopped: {name} was sent whole; the service imports all of it or nothing (ebpf-fw set list)"


def _tell(name: str, answer: Json) -> None:
    words = ("added", "removed", "refreshed", "unchanged", "missing")
    said = ", ".join(f"{word} {answer[word]:,}" for word in words if answer[word])
    output.line(said or "nothing changed")
    notes = [
        (answer["bad"], "bad line", "bad lines", "left out"),
        (answer["host_bits"], "entry has host bits", "entries have host bits", "taken as the networks"),
        (answer["expired"], "entry", "entries", "whose time is over, left out"),
    ]
    for count, one, many, done in notes:
        if count:
            output.note(f"{name}: {count:,} {one if count == 1 else many}: {done}")
    for each in answer["errors"][:SHOWN_BAD_LINES]:
        output.note(f"  {_place(each['pointer'])}: {each['detail']}")
    if answer["bad"] > SHOWN_BAD_LINES:
        output.note(f"  and {answer['bad'] - SHOWN_BAD_LINES:,} more")


def _place(pointer: str) -> str:
    return pointer.removeprefix("/").replace("/", " ")


def _with_lines(name: str, problem: Json) -> Json:
    """Pointers into the list as people say them."""
    errors = problem.get("errors") or []
    if problem.get("code") != "invalid_list" or not errors:
        return problem
    more = re.search(r"\(and (\d+) more\)$", str(problem.get("detail")))
    count = 1 + int(more[1]) if more else len(errors)
    shown = f", the first {len(errors)} are" if count > len(errors) else ""
    told = [{**each, "pointer": _place(each.get("pointer", ""))} for each in errors]
    detail = f"{name}: {count:,} bad {'lines' if count > 1 else 'line'}{shown}"
    return {**problem, "detail": detail, "errors": told}
