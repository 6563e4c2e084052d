"""The life of an installation on a real system: installed, started, reloaded, killed, upgraded, rebooted, removed.

SYSTEM_SHORT=1 runs the part that takes some ten minutes, the making of the images included, on an emulated machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain

import pytest

from tests.vm import kernel, system
from tests.vm.conftest import Report, check

Life = Sequence[Sequence[str]]
SHORT = bool(os.environ.get("SYSTEM_SHORT"))
# A kernel's first test boots it; the report is kept for the others, which stand behind it.
LIVES: dict[str, tuple[str, Life]] = (
    {"package-6.1": ("6.1", system.SHORT_LIFE)}
    if SHORT
    else {f"package-{line}": (line, system.PACKAGE_LIFE) for line in kernel.LINES}
    | {"make-6.1": ("6.1", system.MAKE_LIFE)}
)


CASES = [(name, each) for name, (_, life) in LIVES.items() for each in chain.from_iterable(life)]


@pytest.fixture(scope="session")
def lived() -> dict[str, Report]:
    return {}


@pytest.mark.parametrize(("life", "name"), CASES)
def test_life(lived: dict[str, Report], life: str, name: str) -> None:
    if life not in lived:
        lived[life] = {}  # a boot that fails is not tried again for every check
        system.live(*LIVES[life], lived[life])
    check(lived[life], name)
