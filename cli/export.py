"""Owns `ebpf-fw export`: the rule set as it came, on standard output or in a file, whole or not at all."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import typer

from cli import output
from cli.session import Session


def export(
    session: Session,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", allow_dash=True, help="Default: standard output.")
    ] = None,
) -> None:
    """Export all rules as JSON, as import reads them. A file is replaced at once or not at all."""
    with session.client() as client, client.stream("GET", "/v1/ruleset") as response:
        copied_to(file, response.iter_bytes())
        etag = response.headers.get("ETag")
    if file is None or str(file) == "-":
        return
    if session.as_json:
        output.json_document({"file": str(file), "etag": etag})
    else:
        output.line(f"wrote {file}" + (f", ETag {etag}" if etag else ""))


def copied_to(file: Path | None, chunks: Iterator[bytes]) -> None:
    """None and - are standard output."""
    if file is None or str(file) == "-":
        _copy(chunks, sys.stdout.buffer)
        return
    with _replaced(file) as target:
        _copy(chunks, target)


def _copy(chunks: Iterator[bytes], target: BinaryIO) -> None:
    last = b""
    for chunk in chunks:
        target.write(chunk)
        last = chunk or last
    if last and not last.endswith(b"\n"):
        target.write(b"\n")
    target.flush()


@contextmanager
def _replaced(file: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `file` that takes its place when all of it is on disk."""
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as target:
            temporary = Path(target.name)
            try:
                yield cast("BinaryIO", target)
                target.flush()
                os.fsync(target.fileno())
                temporary.chmod(_mode(file))
                temporary.replace(file)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror or error}") from None


def _mode(file: Path) -> int:
    """The mode `file` has, or that a new file would get; a temporary file has a stricter one."""
    try:
        return file.stat().st_mode & 0o7777
    except FileNotFoundError:
        os.umask(mask := os.umask(0o077))
        return 0o666 & ~mask
