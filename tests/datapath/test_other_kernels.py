"""The oldest kernel that is supported and the newest that Debian has, under QEMU: they take the programs and judge with
them. Kernels, QEMU and their packages come from Debian; `make test-vm` goes on from here, with whole systems.

OTHER_KERNELS="6.1 6.12": others (tests/vm/kernel.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm import guest, small
from tests.vm.conftest import check

LINES = os.environ.get("OTHER_KERNELS", "5.10 7").split()
TIMEOUT_S = 900

pytestmark = pytest.mark.xdist_group("other kernels")


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.build_initrd(tmp_path_factory.mktemp("initrd"))


@pytest.mark.parametrize("line", LINES)
def test_the_kernel_takes_the_programs_and_judges_with_them(initrd: Path, line: str) -> None:
    said = small.run(line, initrd, TIMEOUT_S)
    report = guest.report(said)
    assert report, said
    assert check(report, "describe")["kernel"].startswith(f"{line}.")
    check(report, "load")
    assert check(report, "judge")["frames"] > 20
