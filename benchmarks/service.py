"""The real service as a process of its own, measured from outside: its life and its memory.

Owns one process and its config. Requests are http_client's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from benchmarks.http_client import Connection
from benchmarks.world import BPFFS, GUARDED, World, ends_with_parent

PROGRAM = Path(sys.executable).parent / "ebpf-fw"
START_TIMEOUT_S = 120.0


class Service:
    """A context: the service is started and ready; at its end it is stopped."""

    def __init__(self, world: World, name: str, max_addresses: int) -> None:
        directory = world.directory / name
        directory.mkdir()
        self.socket = directory / "api.sock"
        self.pin_root = BPFFS / name
        self._log = directory / "log"
        self._config = directory / "config.toml"
        self._config.write_text(
            f'[api]\nlisten = "unix:{self.socket}"\n[state]\ndirectory = "{directory / "state"}"\n'
            f'[bpf]\npin_root = "{self.pin_root}"\nmax_addresses = {max_addresses}\nmax_rules = 16384\n'
            f'[[interfaces]]\nname = "{GUARDED}"\nmode = "native"\negress = false\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Service:
        self.launch()
        self.wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    def launch(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "serve", "--config", self._config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=ends_with_parent,
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the service ended: {self._log.read_text()[-2000:]}")
        try:
            with self.connect() as connection:
                return connection.request("GET", "/readyz").status == 200
        except OSError:
            return False

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {START_TIMEOUT_S} s: {self._log.read_text()[-2000:]}")
            time.sleep(0.005)

    def connect(self) -> Connection:
        return Connection(self.socket)

    def memory_mb(self, what: str) -> float:
        """`VmRSS` now, or `VmHWM` since forget_peak()."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(f"{what}:"))
        return int(line.split()[1]) / 1024

    def cpu_s(self) -> float:
        """Of all its threads, and of the kernel for it, since it was started."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        assert self._process is not None
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")
