"""Imports go one way: cli and api → feeds → firewall → nothing of ours. Only firewall/kernel knows bcc and pyroute2.

The test reads the source; it imports nothing.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("firewall", "feeds", "api", "cli")
KERNEL_LIBRARIES = ("bcc", "pyroute2")
WEB_LIBRARIES = ("fastapi", "starlette", "uvicorn", "httpx", "typer", "click", "rich", "prometheus_client")
# Settings are read from a file and are checked as the API checks its input.
PYDANTIC_USERS = ("firewall.settings",)
# What the command line may know of the rest. It talks to the service over HTTP.
CLI_MAY_IMPORT = (
    "cli",
    "firewall.settings",
    "firewall.errors",
    "firewall.kernel.probe",
    "firewall.kernel.finding",
    "api.__main__",
    "api.slow_start",
)
# Within the firewall: who must not know whom. The compilers are pure, the store keeps rules and knows no map.
COMPILERS = ("firewall.policy", "firewall.addresses", "firewall.presence")
ENFORCER = tuple(
    f"firewall.{name}"
    for name in (
        "in_force",
        "cautious",
        "confirmation",
        "commit",
        "reads",
        "advice",
        "rule_changes",
        "list_import",
        "interface_changes",
        "enforcer",
    )
)
ABOVE_COMPILERS = ("firewall.store", *ENFORCER)
STRANGERS = {
    "firewall.kernel": ("firewall.rule", *ABOVE_COMPILERS),
    "firewall.store": (*COMPILERS, "firewall.datapath", "firewall.layout", *ENFORCER),
    "firewall.rule": (*COMPILERS, *ABOVE_COMPILERS),
    **dict.fromkeys(COMPILERS, ABOVE_COMPILERS),
}


@dataclass(frozen=True)
class Import:
    """`importer` names `name`, as a module or as something in one; `lazy` inside a function."""

    importer: str
    name: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.name}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    tree, importer = ast.parse(path.read_text(), str(path)), module_name(path)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    in_functions = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        for name in names_in(node):
            yield Import(importer, name, getattr(node, "lineno", 0), id(node) in in_functions)


def names_in(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports here are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def all_imports() -> list[Import]:
    paths = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
    return [found for path in paths for found in imports_of(path)]


RULES: dict[str, Callable[[Import], bool]] = {
    "the firewall imports nothing of ours but itself": lambda i: (
        within(i.importer, "firewall") and within(i.name, "api", "cli", "tests")
    ),
    "the firewall does not know who brings lists": lambda i: (
        within(i.importer, "firewall", "cli") and within(i.name, "feeds")
    ),
    "feeds know the firewall but not what serves them": lambda i: (
        within(i.importer, "feeds")
        and within(i.name, "api", "cli", "tests", "firewall.kernel", "firewall.enforcer")
    ),
    "the API does not import the command line": lambda i: (
        within(i.importer, "api") and within(i.name, "cli", "tests")
    ),
    "only firewall.kernel imports bcc and pyroute2": lambda i: (
        within(i.name, *KERNEL_LIBRARIES) and not within(i.importer, "firewall.kernel")
    ),
    "the firewall reaches the kernel through a protocol that firewall.kernel implements": lambda i: (
        within(i.importer, "firewall")
        and within(i.name, "firewall.kernel")
        and not within(i.importer, "firewall.kernel")
    ),
    "the firewall knows no web or terminal library": lambda i: (
        within(i.importer, "firewall") and within(i.name, *WEB_LIBRARIES)
    ),
    "in the firewall only the settings use pydantic": lambda i: (
        within(i.importer, "firewall")
        and within(i.name, "pydantic")
        and not within(i.importer, *PYDANTIC_USERS)
    ),
    "the command line knows the settings, the probe and how to serve": lambda i: (
        within(i.importer, "cli")
        and within(i.name, *OURS, "tests")
        and not within(i.name, *CLI_MAY_IMPORT, "firewall.__version__")
    ),
    "the command line imports the API only to serve": lambda i: (
        within(i.importer, "cli") and within(i.name, "api") and not i.lazy
    ),
    "the parts of the firewall know only those below them": lambda i: any(
        within(i.importer, part) and within(i.name, *unknown) for part, unknown in STRANGERS.items()
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_imports_keep_the_rule(rule: str) -> None:
    broken = [str(found) for found in all_imports() if RULES[rule](found)]
    assert not broken, f"{rule}, but: {'; '.join(broken)}"


def test_every_package_is_shipped() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    present = {module_name(path) for package in OURS for path in (ROOT / package).rglob("__init__.py")}
    assert present == set(shipped)
