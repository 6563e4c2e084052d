"""The answers for people and programs: tables, JSON, and where they were measured.

Owns their form. It measures nothing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.measure import Answers, Goal, Row

ROOT = Path(__file__).resolve().parent.parent
# What a row is set in relation to, by question and unit: the first name that is there.
REFERENCES = {
    ("packet cost", "ns"): "xdp-filter, 1 address, miss",
    ("bulk", "s"): "1,000,000 addresses: ipset restore",
}


def environment(is_quick: bool) -> dict[str, Any]:
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": is_quick,
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "jit": Path("/proc/sys/net/core/bpf_jit_enable").read_text().strip() != "0",
        "python": platform.python_version(),
        "load": list(os.getloadavg()),
        "peers": peers.versions(),
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=10"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def reference_of(row: Row, answers: Answers) -> Row | None:
    """What the row's ratio is to."""
    if row.question == "throughput":
        name = f"bare XDP_PASS, {row.name.rpartition(', ')[2]}"
    else:
        name = REFERENCES.get((row.question, row.unit), "")
    return next((each for each in answers.rows if each.question == row.question and each.name == name), None)


def ratio_of(row: Row, answers: Answers) -> float | None:
    """To the reference's net value."""
    reference = reference_of(row, answers)
    return row.net / reference.net if reference is not None and reference.net else None


def as_json(answers: Answers, where: Mapping[str, Any]) -> str:
    rows = [
        {**asdict(row), "best": row.best, "net": row.net, "median": row.median, "spread": row.spread,
         "unstable": row.is_unstable, "ratio": ratio_of(row, answers)}
        for row in answers.rows
    ]  # fmt: skip
    goals = [_goal_fields(goal) for goal in answers.goals]
    content = {
        "environment": where,
        "verified_instructions": answers.verified_instructions,
        "rows": rows,
        "goals": goals,
    }
    return json.dumps(content, indent=2) + "\n"


def _goal_fields(goal: Goal) -> dict[str, Any]:
    fields = {name: getattr(goal, name) for name in ("name", "measured", "limit", "unit", "at_most")}
    return {**fields, "met": goal.is_met, "unstable": goal.is_unstable}


def as_markdown(answers: Answers, where: Mapping[str, Any]) -> str:
    """Goals and all rows, for README."""
    lines = ["| goal | measured | wanted | |", "|---|---|---|---|"]
    for goal in answers.goals:
        verdict = ("met" if goal.is_met else "not met") + (" (unstable)" if goal.is_unstable else "")
        wanted = f"{'≤' if goal.at_most else '≥'} {_number(goal.limit)} {goal.unit}"
        lines.append(f"| {goal.name} | {_number(goal.measured)} {goal.unit} | {wanted} | {verdict} |")
    lines += [
        "",
        "| question | what | best | median | spread | less harness | ratio | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in answers.rows:
        ratio = ratio_of(row, answers)
        cells = (
            row.question,
            row.name,
            f"{_number(row.best)} {row.unit}",
            _number(row.median),
            "once"
            if len(row.values) == 1
            else f"{row.spread:.0%}" + (" unstable" if row.is_unstable else ""),
            _number(row.net) if row.baseline else "",
            "" if ratio is None else f"{ratio:.2f}",
            row.note,
        )
        lines.append(f"| {' | '.join(cells)} |")
    counts = ", ".join(f"{name} {count:,}" for name, count in answers.verified_instructions.items())
    peer_versions = ", ".join(where["peers"].values())
    lines += [
        "",
        f"Measured {where['measured_at']} at commit {where['commit']}: {where['cpu']}, {where['cores']} cores, Linux "
        f"{where['kernel']}, Python {where['python']}; {peer_versions}. Verified instructions: {counts}.",
    ]
    return "\n".join(lines) + "\n"


def show(answers: Answers, where: Mapping[str, Any], console: Console) -> None:
    for question in dict.fromkeys(row.question for row in answers.rows):
        console.print(_rows_table(question, answers))
    if answers.goals:
        console.print(_goals_table(answers))
    console.print(_environment_table(answers, where))
    unstable = [f"{row.question}: {row.name}" for row in answers.rows if row.is_unstable]
    if unstable:
        console.print(f"[yellow]Unstable (the rounds differ by more than 15%): {'; '.join(unstable)}[/]")


def _rows_table(question: str, answers: Answers) -> Table:
    table = Table(title=question, title_justify="left", title_style="bold")
    table.add_column("what")
    for name in ("best", "median", "spread"):
        table.add_column(name, justify="right")
    has_baseline = any(row.baseline for row in answers.rows if row.question == question)
    reference = next(
        (r for row in answers.rows if row.question == question and (r := reference_of(row, answers))), None
    )
    if has_baseline:
        table.add_column("less harness", justify="right")
    if reference is not None:
        table.add_column(f"× {reference.name.rpartition(', ')[0] or reference.name}", justify="right")
    table.add_column("note", style="dim")
    for row in (each for each in answers.rows if each.question == question):
        cells = [row.name, f"{_number(row.best)} {row.unit}", _number(row.median), _spread(row)]
        if has_baseline:
            cells.append(_number(row.net) if row.baseline else "")
        if reference is not None:
            ratio = ratio_of(row, answers) if row.unit == reference.unit else None
            cells.append("" if ratio is None else f"{ratio:.2f}")
        table.add_row(*cells, row.note)
    return table


def _goals_table(answers: Answers) -> Table:
    table = Table(title="goals", title_justify="left", title_style="bold")
    table.add_column("goal")
    table.add_column("measured", justify="right")
    table.add_column("wanted", justify="right")
    table.add_column("")
    for goal in answers.goals:
        sign = "≤" if goal.at_most else "≥"
        verdict = "[green]met[/]" if goal.is_met else "[red]not met[/]"
        if goal.is_unstable:
            verdict += " [yellow](unstable)[/]"
        wanted = f"{sign} {_number(goal.limit)} {goal.unit}"
        table.add_row(goal.name, f"{_number(goal.measured)} {goal.unit}", wanted, verdict)
    return table


def _environment_table(answers: Answers, where: Mapping[str, Any]) -> Table:
    table = Table(title="where", title_justify="left", title_style="bold", show_header=False)
    for name, value in where.items():
        table.add_row(name, ", ".join(map(str, value.values())) if isinstance(value, dict) else str(value))
    for program, count in answers.verified_instructions.items():
        table.add_row(f"verifier, {program}", f"{count:,} instructions")
    return table


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _spread(row: Row) -> str:
    if len(row.values) == 1:
        return "once"
    text = f"{row.spread:.0%}"
    return f"[yellow]{text} unstable[/]" if row.is_unstable else text
