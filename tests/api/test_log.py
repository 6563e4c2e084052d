"""What the log looks like, for a person and in the journal. A process of its own: logging is set up once a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
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


FORGED = "fine\u2028<2>[critical]\u00a0filters\u00a0removed"
HARMFUL = [FORGED, "a\nb", "a\rb", "a\x1b[2Jb", "a\x85b", "a\x9b31mb", "a\x0bb", "\u202eabc", "a b\u2029c"]
SAYS_HARM = """
import json, sys
import structlog
from api import log
log.configure()
for text in json.loads(sys.argv[1]):
    structlog.get_logger("x").info("rule.add", reason=text, more=[text])
    structlog.get_logger("x").info(text)
try:
    raise ValueError(FORGED := json.loads(sys.argv[1])[0])
except ValueError:
    structlog.get_logger("x").exception("it failed")
    structlog.get_logger("x").error("it failed", exception=f"a line\\n{FORGED}")
"""


def lines(tmp_path: Path, is_journal: bool, said: Sequence[str] = (SAYS,), **environment: str) -> list[str]:
    """On a file that plays the journal's stream."""
    with (tmp_path / "stream").open("w+") as stream:
        named = os.fstat(stream.fileno())
        told = {"JOURNAL_STREAM": f"{named.st_dev}:{named.st_ino if is_journal else 0}"}
        subprocess.run(
            [sys.executable, "-c", *said],
            cwd=ROOT, env={**os.environ, **told, **environment}, stderr=stream, check=True,
        )  # fmt: skip
        stream.seek(0)
        return stream.read().rstrip("\n").split("\n")


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


@pytest.mark.parametrize("is_journal", [True, False])
def test_what_a_client_says_ends_no_line_and_steers_no_terminal(tmp_path: Path, is_journal: bool) -> None:
    found = lines(tmp_path, is_journal, (SAYS_HARM, json.dumps(HARMFUL)))
    assert all(line.isprintable() for line in found), found
    assert f"reason={FORGED!r} more=[{FORGED!r}]" in found[0]
    changes, failures = found[: 2 * len(HARMFUL)], found[2 * len(HARMFUL) :]
    assert all("[info] " in line for line in changes) and "[error] it failed" in failures[0]
    if is_journal:
        assert {line[:3] for line in changes} == {"<6>"} and {line[:3] for line in failures} == {"<3>"}
