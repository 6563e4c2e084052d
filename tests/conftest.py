"""Rules that hold for every test: what needs root says so, no test skips, and the header names the platform.

It must not define fixtures of one layer; those live in the layer's own conftest.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT_DIRECTORIES = tuple(Path(__file__).parent / name for name in ("datapath", "netns"))


def pytest_report_header(config: pytest.Config) -> str:
    return f"kernel {platform.release()}, bcc {_bcc_version()}, {'root' if os.geteuid() == 0 else 'not root'}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(directory) for directory in ROOT_DIRECTORIES):
            item.add_marker("root")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.geteuid() != 0 and item.get_closest_marker("root"):
        pytest.fail("needs root: run `sudo make test`, or `make test-unit` for what does not", pytrace=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test is a failed test: nothing that is missing may hide behind a green line."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _fail_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is imported."""
    report = yield
    if report.skipped:
        _fail_skipped(report)
    return report


def _fail_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    report.outcome = "failed"
    report.longrepr = f"{reason}\nTests here must not skip (see CONTRIBUTING.md)."


def _bcc_version() -> str:
    try:
        import bcc
    except ImportError as error:
        return f"cannot be imported ({error})"
    return str(bcc.__version__)
