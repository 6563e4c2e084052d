"""SECURITY.md claims nothing that no test shows: each test it names exists, and each line of its tables names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def names_in(path: str) -> set[str]:
    file = ROOT / path
    if not file.exists():
        return set()
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, functions)}


def test_each_named_test_exists() -> None:
    named = NAMED.findall(TEXT)
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(path)]
    assert len(named) > 20 and not missing, missing


def test_each_claim_of_a_table_names_its_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ")]
    claims = [row for row in rows if "shown by" not in row]
    assert claims and [row for row in claims if not NAMED.search(row)] == []


def test_what_is_in_backquotes_as_a_test_is_spelled_so_that_it_is_found() -> None:
    assert len(re.findall(r"`tests/[^`]*`", TEXT)) == len(NAMED.findall(TEXT))
