"""Owns `ebpf-fw check`: shows what the host probe found, with the command that mends each finding.

It works without the service and without a config file.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from cli import output
from cli.session import Session

if TYPE_CHECKING:
    from firewall.kernel.finding import Finding

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_ALWAYS_SHOWN = ("interface", "mode")


def check(
    session: Session,
    interface: Annotated[
        list[str] | None,
        typer.Option(
            "--interface", metavar="NIC", help="Repeat it. Default: every one, in brief.", show_default=False
        ),
    ] = None,
) -> None:
    """Say what this host supports, and how to mend what it does not. It attaches and changes nothing."""
    from firewall.kernel.probe import PIN_ROOT, probe

    settings = session.settings()
    findings = probe(interface, pin_root=PIN_ROOT if settings is None else settings.bpf.pin_root)
    failed = sum(finding.status == "fail" for finding in findings)
    if session.as_json:
        output.json_document({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings if interface else [finding for finding in findings if _is_brief(finding)])
        warned = sum(finding.status == "warn" for finding in findings)
        output.line("")
        output.line(f"{_count(failed, 'failure')}, {_count(warned, 'warning')}")
    if failed:
        raise typer.Exit(1)


def _is_brief(finding: "Finding") -> bool:
    return finding.interface is None or finding.status != "ok" or finding.name in _ALWAYS_SHOWN


def _print(findings: Sequence["Finding"]) -> None:
    console = output.console()
    for interface, group in groupby(findings, key=lambda finding: finding.interface):
        console.print(Text(f"\n{interface}" if interface else "host", "bold"))
        shown = Table.grid(padding=(0, 2))
        shown.add_column(no_wrap=True, min_width=6)
        shown.add_column(no_wrap=True, min_width=10)
        shown.add_column(overflow="fold")
        for finding in group:
            shown.add_row(
                Text(f"  {finding.status}", _STYLES[finding.status]), finding.name, _detail(finding)
            )
        console.print(shown)


def _detail(finding: "Finding") -> Text:
    text = output.plain(finding.detail)
    return text if finding.mend is None else text + Text("\n$ ", "dim") + Text(finding.mend, "cyan")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
