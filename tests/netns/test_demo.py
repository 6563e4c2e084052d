"""The demo of README.md: every step is printed and does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "scripts/demo.py"
STEPS = (
    "1. Two network namespaces, joined by a veth pair",
    "2. The service, in the first namespace",
    "3. No rules: ping passes",
    "4. Add a rule over REST: drop what comes from the client",
    "5. Ping is blocked, and the rule counted it",
    "6. Delete the rule: ping passes again",
    "7. Tear down",
)


def test_the_demo_prints_every_step_and_leaves_nothing() -> None:
    before = sorted(Path("/run/netns").glob("ebpf-fw-demo-*"))
    done = subprocess.run(
        [sys.executable, str(DEMO)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert tuple(line for line in lines if line[:1].isdigit()) == STEPS
    assert "FAILED" not in done.stdout
    assert [line for line in lines if "received" in line] == [
        f"   ok   ping 10.213.0.2 → 10.213.0.1: 5 sent, {received} received (expected {received})"
        for received in (5, 0, 5)
    ]
    assert "   rule demo: 5 packets, 490 bytes dropped" in lines
    assert sorted(Path("/run/netns").glob("ebpf-fw-demo-*")) == before
