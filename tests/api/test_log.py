"""What the log looks like, for a person and in the journal. A process of its own: logging is set up once a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAYS = """
import logging, structlog
from api import log
log.configure()
said = structlog.get_logger("x")
said.info("interface attached", interface="eth0")
said.warning("request refused", status=503)
logging.getLogger("other").error("by another library")
try:
    1 / 0
except ZeroDivisionError:
    said.exception("it failed")
"""


def lines(tmp_path: Path, is_journal: bool, **environment: str) -> list[str]:
    """On a file that plays the journal's stream."""
    with (tmp_path / "stream").open("w+") as stream:
        named = os.fstat(stream.fileno())
        told = {"JOURNAL_STREAM": f"{named.st_dev}:{named.st_ino if is_journal else 0}"}
        subprocess.run(
            [sys.executable, "-c", SAYS], cwd=ROOT, env={**os.environ, **told, **environment}, stderr=stream, check=True
        )  # fmt: skip
        stream.seek(0)
        return stream.read().splitlines()


def test_in_the_journal_a_line_has_its_level_and_no_time(tmp_path: Path) -> None:
    found = lines(tmp_path, is_journal=True)
    assert found[:3] == [
        "<6>[info] interface attached interface=eth0",
        "<4>[warning] request refused status=503",
        "<3>[error] by another library",
    ]
    assert len(found) > 5 and all(line.startswith("<3>") for line in found[3:])
    assert "ZeroDivisionError" in found[-1]


def test_elsewhere_a_line_has_the_time(tmp_path: Path) -> None:
    first = lines(tmp_path, is_journal=False)[0]
    assert first[:2] == "20" and first.endswith("Z [info] interface attached interface=eth0")


@pytest.mark.parametrize("is_journal", [True, False])
def test_json_comes_only_where_it_is_asked_for(tmp_path: Path, is_journal: bool) -> None:
    assert not any("{" in line for line in lines(tmp_path, is_journal))
    found = lines(tmp_path, is_journal, EBPF_FW_LOG="json")
    assert '"event":"interface attached"' in found[0].replace(": ", ":")
