"""Owns what every command that changes something takes besides: `--confirm`, `--allow-lockout`, `--dry-run`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cli import output
from cli.client import Query
from cli.failure import Json

Confirm = Annotated[
    int | None,
    typer.Option(
        "--confirm",
        metavar="SECONDS",
        help="Take the change back after this time, unless `ebpf-fw confirm` comes before.",
        show_default=False,
    ),
]
AllowLockout = Annotated[
    bool, typer.Option("--allow-lockout", help="Also where it cuts off an SSH session, or the API.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")]

COUNTS = ("added", "removed", "changed", "unchanged")


@dataclass(frozen=True)
class Asking:
    """As the options say."""

    confirm_s: int | None
    allow_lockout: bool
    dry_run: bool

    def query(self) -> Query:
        return {
            "confirm_within": self.confirm_s,
            "allow_lockout": "true" if self.allow_lockout else None,
            "dry_run": "true" if self.dry_run else None,
        }

    def remind(self) -> None:
        """Beside the output of a change that was made."""
        if self.confirm_s is not None:
            output.note(f"taken back in {self.confirm_s} s, unless you confirm: ebpf-fw confirm")


def tell_effect(effect: Json, *, as_json: bool) -> None:
    """Of a change that was only tried."""
    if as_json:
        output.json_document(effect)
        return
    words = ("add", "remove", "change", "leave as they are")
    counts = (f"{word} {effect[name]:,}" for word, name in zip(words, COUNTS, strict=True))
    output.line(f"would {', '.join(counts)}")
    for each in effect["shadowed"]:
        output.line(
            f"{each['rule']} can never win: {each['by'] or 'never_drop'} beats it wherever it matches"
        )
    for each in effect["lockouts"]:
        who = "the default action" if each["rule"] is None else each["rule"]
        output.line(
            f"lockout: {who} would drop {each['connection']} at {each['hook']} of {each['interface']}"
        )


def joined(effects: Iterable[Json]) -> Json:
    """Of changes that were tried one after another."""
    total: dict[str, Any] = {"dry_run": True, **dict.fromkeys(COUNTS, 0), "shadowed": [], "lockouts": []}
    total["confirm_within"] = None
    for effect in effects:
        for name in COUNTS:
            total[name] += effect[name]
        for name in ("shadowed", "lockouts"):
            total[name] += effect[name]
        total["confirm_within"] = effect["confirm_within"]
    return total
