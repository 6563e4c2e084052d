"""The test's end of an agent: starts `agent.py` in a namespace and gives it one command at a time.

Owns that process. It must not know what the commands mean.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class Agent:
    """`agent.py` in a namespace, as a process that takes one command at a time."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.listening: dict[tuple[str, int], int] = {}
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, str(Path(__file__).with_name("agent.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the agent in {self.namespace} ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{command} in {self.namespace}: {answer['error']}")
        return answer["result"]

    def listen(self, transport: str, port: int) -> int:
        """Echo on a port, once however often it is asked. Returns the port (chosen by the kernel for 0)."""
        if (transport, port) not in self.listening:
            self.listening[transport, port] = self.call("listen", transport=transport, port=port)
        return self.listening[transport, port]

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
