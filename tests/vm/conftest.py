"""Fixtures of the virtual machines: a kernel boots once, its checks are the tests.

Owns which kernels there are and their boots. It must not know what is checked in them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.vm import frames, guest, kernel, netdevsim
from tests.vm.boot import GuestDied, Result, boot

Report = dict[str, dict[str, Any]]
Guest = Callable[..., Report]
TIMEOUT_S = 5400
# Numbers of policy rules that the programs are built for. The large ones take minutes each under emulation.
RULES = tuple(int(each) for each in os.environ.get("VM_RULES", "64 4096 16384").split())


def check(report: Report, name: str) -> dict[str, Any]:
    """The facts of a check that went well; fails with what the machine said otherwise."""
    if name not in report:
        pytest.fail(f"the machine reported nothing of {name}: it reported {sorted(report)}", pytrace=False)
    found = report[name]
    if not found["ok"]:
        pytest.fail(found["error"], pytrace=False)
    print(f"{name}: {found['seconds']} s, {found['facts']}")
    return dict(found["facts"])


@pytest.fixture(scope="session")
def programs_in(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """`programs_in("6.1")`: the report of guest_programs and guest_verifier on that kernel."""

    def run(line: str) -> Result:
        share = tmp_path_factory.mktemp(f"share-{line}")
        frames.write(share)
        rules = " ".join(map(str, RULES))
        modules = (f"guest_verifier {rules}", f"guest_programs {rules}")
        command = " && ".join(f".venv/bin/python -m tests.vm.{module}" for module in modules)
        return boot(kernel.prepare(line), command, share, TIMEOUT_S)

    return once(run)


@pytest.fixture(scope="session")
def offload_in(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """`offload_in("6.12")`: the report of guest_offload on that kernel with a netdevsim device."""

    def run(line: str) -> Result:
        prepared = kernel.prepare(line)
        share = tmp_path_factory.mktemp(f"share-offload-{line}")
        module = netdevsim.prepare(prepared.build)
        (share / module.name).symlink_to(module)
        command = f"{netdevsim.SET_UP} && .venv/bin/python -m tests.vm.guest_offload"
        return boot(prepared, command, share, TIMEOUT_S)

    return once(run)


@pytest.fixture(scope="session")
def systemd_in() -> Guest:
    """`systemd_in("6.1")`: the report of guest_systemd on that kernel."""

    def run(line: str) -> Result:
        return boot(kernel.prepare(line), ".venv/bin/python -m tests.vm.guest_systemd", None, TIMEOUT_S)

    return once(run)


def once(run: Callable[[str], Result]) -> Guest:
    """The report of a kernel's only boot. One that fails is not tried again for every check: the test that asked first
    says why, the others go by what was reported until then."""
    reports: dict[str, Report] = {}

    def report(line: str) -> Report:
        if line not in reports:
            reports[line] = {}
            try:
                result = run(line)
            except GuestDied as death:
                reports[line] = guest.report(death.output)
                raise
            reports[line] = guest.report(result.output)
            if result.status:
                pytest.fail(f"the command ended with {result.status}:\n{result.output}", pytrace=False)
        return reports[line]

    return report
