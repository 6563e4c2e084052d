"""The linters and the type checker have nothing to say. `make format` mends what the formatters find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TYPED = ("firewall", "feeds", "api", "cli", "scripts", "benchmarks")


def existing(*names: str) -> list[str]:
    return [name for name in names if (ROOT / name).exists()]


def files(*patterns: str) -> list[str]:
    found = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))
    assert found, f"no file matches {patterns}"
    return found


def check(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{command[0]} {command[1]} failed:\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    check(BIN / "ruff", "check", "--output-format=concise", ".")


def test_python_is_formatted() -> None:
    check(BIN / "ruff", "format", "--check", ".")


def test_types_are_strict() -> None:
    check(BIN / "mypy", "--strict", *existing(*TYPED))


def test_c_is_formatted() -> None:
    check(BIN / "clang-format", "--dry-run", "-Werror", *files("bpf/*.h", "bpf/*.c"))


def test_shell_scripts_are_sound() -> None:
    check("shellcheck", *files("scripts/*.sh", "scripts/deb/p*", "benchmarks/*.sh", ".ci/run"))


def test_scripts_are_executable() -> None:
    not_executable = [
        name
        for name in files("scripts/*.sh", "scripts/deb/p*", "benchmarks/*.sh", ".ci/run")
        if not (ROOT / name).stat().st_mode & 0o100
    ]
    assert not not_executable
