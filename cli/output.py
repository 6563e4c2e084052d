"""Owns how answers look: JSON for programs, tables for people, problems on stderr. It must not know the API.

Texts from the service may hold anything an operator typed: they are shown as data, never as markup, and their
control characters cannot reach the terminal.
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Never

import orjson
from rich import box
from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_WIDE = 1_000_000  # where the output is a file or a pipe, a row stays one line
_STYLES = {
    "drop": "red",
    "allow": "green",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "yes": "green",
    "no": "red",
}


class _Console(Console):
    def on_broken_pipe(self) -> Never:
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return _Console(
        file=stream,
        width=None if stream.isatty() or _columns_are_set() else _WIDE,
        highlight=False,
        markup=False,
        emoji=False,
    )


def json_document(document: Any) -> None:
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")


def line(text: str) -> None:
    console().print(plain(text), soft_wrap=True)


def note(text: str) -> None:
    """A remark for the person at the terminal, beside the output."""
    console(stderr=True).print(plain(text), soft_wrap=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Sequence[str] = (),
    wrapped: Sequence[str] = (),
) -> None:
    """`right` names the columns of numbers, `wrapped` those that give way in a narrow terminal.

    A cell that is None is empty.
    """
    shown = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold"
    )
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        shown.add_column(column, justify=justify, overflow="fold", no_wrap=column not in wrapped)
    for row in rows:
        shown.add_row(*(_cell(value) for value in row))
    console().print(shown)


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """One thing and its fields, a line each."""
    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in pairs:
        shown.add_row(name, _cell(value))
    console().print(shown)


def problem(document: dict[str, Any], *, as_json: bool) -> None:
    """problem+json: as it is on stdout for programs, as lines on stderr for people."""
    if as_json:
        json_document(document)
        return
    error = console(stderr=True)
    error.print(Text("error: ", "bold red") + plain(document.get("title") or "failed"), soft_wrap=True)
    if (detail := document.get("detail")) and not _is_said_by_errors(document):
        error.print(plain(f"  {detail}"), soft_wrap=True)
    for entry in document.get("errors") or []:
        pointer = entry.get("pointer")
        where = f"{pointer}: " if pointer else ""
        error.print(plain(f"  {where}{entry.get('detail')}"), soft_wrap=True)
    if hint := document.get("hint"):
        error.print(Text("  hint: ", "cyan") + plain(hint), soft_wrap=True)


def _is_said_by_errors(document: dict[str, Any]) -> bool:
    """Whether the detail is no more than the first fault and how many more there are."""
    errors = document.get("errors") or []
    if not errors:
        return False
    first, pointer = str(errors[0].get("detail")), errors[0].get("pointer")
    detail = re.sub(r" \(and \d+ more\)$", "", str(document.get("detail")))
    return detail in (first, f"{pointer}: {first}", f"body{pointer}: {first}")


def progress(*columns: ProgressColumn) -> Progress:
    """A progress bar on stderr, silent where stderr is no terminal; of rules where no columns are given."""
    of_rules = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rules"),
        TimeRemainingColumn(),
    )
    return Progress(
        *(columns or of_rules),
        console=console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def plain(value: Any) -> Text:
    """The value as text that cannot steer the terminal."""
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Text(text)


def _cell(value: Any) -> Text:
    if value is None:
        return Text()
    if isinstance(value, Text):
        return value
    if isinstance(value, bool):
        value = "yes" if value else "no"
    text = plain(f"{value:,}" if isinstance(value, int) else value)
    if style := _STYLES.get(text.plain):
        text.stylize(style)
    return text


def _columns_are_set() -> bool:
    return os.environ.get("COLUMNS", "").isdigit()
