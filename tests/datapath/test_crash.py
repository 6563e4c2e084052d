"""Killed at any line of any change, nothing that was acknowledged is lost and nothing else is there.

CRASH_CHANGES: how many changes (`make no-gap`: 3,000).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CHANGES = int(os.environ.get("CRASH_CHANGES", "120"))
MANY = 1000
# Where a change has its steps: plan, store, entries, their table and its growth, policy, maps, system calls, programs.
STEPS = {
    *("commit.py", "ruleset.py", "store.py", "datapath.py", "address_table.py", "address_filter.py"),
    *(
        "policy_maps.py",
        "list_import.py",
        "set_changes.py",
        "set_store.py",
        "maps.py",
        "bpf.py",
        "program_set.py",
    ),
}
ROOT = Path(__file__).parents[2]


def test_a_kill_at_any_step_of_a_change_loses_nothing_that_was_acknowledged(fresh_directory: Path) -> None:
    command = [sys.executable, "-m", "tests.datapath.crash_process", str(fresh_directory), str(CHANGES), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["changes"] >= CHANGES
    assert told["kills"] > CHANGES / 16 and told["in_flight"] > told["kills"] / 8
    if CHANGES >= MANY:
        assert told["modules"].keys() >= STEPS
