"""The real fail2ban in a namespace, with a configuration of the test's own and the action that is shipped.

Owns its process and its files. It must not know what a ban does to packets.
"""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "integrations/fail2ban"
JAIL = "door"
START_TIMEOUT_S = 30


class Fail2ban:
    """A context manager: it runs inside."""

    def __init__(self, namespace: str, directory: Path, command: str) -> None:
        """`command`: how ebpf-fw is called."""
        self._inside = ["ip", "netns", "exec", namespace]
        self._directory, self._log = directory, directory / "auth.log"
        self.output = directory / "fail2ban.out"
        self._paths = ["-c", str(directory), "-s", str(directory / "socket"), "-p", str(directory / "pid")]
        self._process: subprocess.Popen[bytes] | None = None
        for part in ("action.d", "filter.d"):
            (directory / part).mkdir(parents=True)
        shutil.copy(SHIPPED / "action.d/ebpf-fw.conf", directory / "action.d")
        self._log.touch()
        database = directory / "fail2ban.sqlite3"
        (directory / "fail2ban.conf").write_text(
            f"[Definition]\nsocket = {directory / 'socket'}\npidfile = {directory / 'pid'}\n"
            f"loglevel = INFO\nlogtarget = STDOUT\nsyslogsocket = auto\ndbfile = {database}\n"
            "dbpurgeage = 1d\ndbmaxmatches = 10\nallowipv6 = auto\n"
        )
        (directory / "filter.d/door.conf").write_text(
            "[Definition]\nfailregex = ^.* wrong password from <HOST>$\n"
        )
        (directory / "jail.conf").write_text(
            f"[{JAIL}]\nenabled = true\nfilter = door\nlogpath = {self._log}\nbackend = polling\nusedns = no\n"
            "maxretry = 2\nfindtime = 600\nbantime = 600\n"
            f'action = ebpf-fw[ebpf-fw="{command}", bans="{SHIPPED / "bans.py"}", dbfile="{database}"]\n'
        )

    def __enter__(self) -> Fail2ban:
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._inside, "fail2ban-server", *self._paths, "-f", "start"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_TIMEOUT_S)
        self._process = None

    def wrong_password(self, address: str, times: int = 2) -> None:
        with self._log.open("a") as log:
            for _ in range(times):
                log.write(
                    f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} door[1]: wrong password from {address}\n"
                )

    def client(self, *arguments: str) -> str:
        command = [*self._inside, "fail2ban-client", *self._paths, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + self.output.read_text()
        return done.stdout
