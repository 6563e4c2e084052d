"""The real service as a test runs it: its configuration, its process, its log, its API.

Owns one process at a time, known by its id. It must not know the topology beyond the namespace's name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

PROGRAM = Path(sys.executable).parent / "ebpf-fw"
# Compiling and verifying takes three seconds on an idle machine, and many on one that runs other tests.
READY_TIMEOUT_S = 90.0
# Programs that one test's service compiled, the next one's loads. The first of a run compiles.
CACHE = Path(__file__).resolve().parents[2] / "build" / "programs"
STOP_TIMEOUT_S = 30.0


class DaemonFailedError(Exception):
    """The service ended, or was not ready in time. The message carries its log."""


class Daemon:
    """`ebpf-fw serve` in a namespace. `client` works over restarts: every call opens its socket anew.

    `command` is what the next start runs: this checkout's program, unless a test puts another there.
    """

    def __init__(
        self, namespace: str, directory: Path, pin_root: Path, configuration: Mapping[str, Any]
    ) -> None:
        self.namespace = namespace
        self.directory = directory
        self.pin_root = pin_root
        self.socket = directory / "api.sock"
        self.log_path = directory / "daemon.log"
        self.configuration_path = directory / "config.toml"
        self.configure(configuration)
        self.command = [str(PROGRAM)]
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        limits = httpx.Limits(max_keepalive_connections=0)
        transport = httpx.HTTPTransport(uds=str(self.socket), limits=limits)
        self.client = httpx.Client(transport=transport, base_url="http://ebpf-fw", timeout=30)

    def configure(self, configuration: Mapping[str, Any]) -> None:
        """Write the configuration the next start reads: tables by name, `interfaces` a list of tables."""
        tables: dict[str, Any] = {
            "api": {"listen": f"unix:{self.socket}"},
            "state": {"directory": str(self.directory / "state"), "cache_directory": str(CACHE)},
            "bpf": {"pin_root": str(self.pin_root), "max_addresses": 65536},
        }
        for name, value in configuration.items():
            tables[name] = value if isinstance(value, list) else {**tables.get(name, {}), **value}
        self.configuration_path.write_text(to_toml(tables))

    @property
    def pid(self) -> int:
        assert self.process is not None, "the service was not started"
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def launch(self) -> None:
        """Start the process and return at once. `ip netns exec` becomes the service, so the id is its own."""
        assert self.process is None, "the service runs already"
        command = ["ip", "netns", "exec", self.namespace, *self.command, "serve"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.configuration_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    def start(self) -> None:
        self.launch()
        self.wait_until_ready()

    def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        answer = "no answer"
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                status = self.process.returncode if self.process else "none"
                raise DaemonFailedError(f"the service ended with status {status}:\n{self.log}")
            try:
                response = self.client.get("/readyz", timeout=2)
                if response.status_code == 200:
                    return
                answer = response.text
            except httpx.TransportError as error:
                answer = repr(error)
            time.sleep(0.03)
        raise DaemonFailedError(f"not ready after {timeout_s} s ({answer}):\n{self.log}")

    def signal(self, number: signal.Signals) -> int:
        """Send a signal, wait for the end, and return the exit status (negative: ended by that signal)."""
        assert self.process is not None, "the service was not started"
        self.process.send_signal(number)
        status = self.process.wait(STOP_TIMEOUT_S)
        self.process = None
        return status

    def kill9(self) -> None:
        self.signal(signal.SIGKILL)

    def stop(self) -> int:
        return self.signal(signal.SIGTERM)

    def restart(self) -> None:
        """Stop the service if it runs, then start it and wait until it is ready."""
        if self.process is not None:
            self.stop()
        self.start()

    def close(self) -> None:
        """End the process whatever state it is in."""
        self.client.close()
        if self.process is None:
            return
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.kill9()
            raise DaemonFailedError(
                f"the service ignored SIGTERM for {STOP_TIMEOUT_S} s:\n{self.log}"
            ) from None

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def to_toml(tables: Mapping[str, Any]) -> str:
    """Tables of strings, numbers, booleans and lists of those, for which JSON's notation is TOML's too."""
    lines: list[str] = []
    for name, value in tables.items():
        for table in value if isinstance(value, list) else [value]:
            lines.append(f"[[{name}]]" if isinstance(value, list) else f"[{name}]")
            lines.extend(f"{key} = {json.dumps(item)}" for key, item in table.items())
    return "\n".join(lines) + "\n"
