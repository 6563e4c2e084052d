"""The real CrowdSec's local API in a namespace, with a configuration of the test's own: no parsers, no central API.

Owns its programs, its process and its files. The distribution's package is unpacked and not installed: its service is
not to begin on this host. It must not know what a decision does to packets.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

from tests.unit.host import wait_for

# Unpacked once, as the programs of the filter are kept beside.
UNPACKED = Path(__file__).resolve().parents[2] / "build" / "crowdsec"
PORT = 18089
START_TIMEOUT_S = 60.0


def programs() -> Path:
    """The directory of `crowdsec` and `cscli`: the host's own, else those of the package."""
    installed = shutil.which("crowdsec")
    if installed is not None:
        return Path(installed).parent
    if not (UNPACKED / "usr/bin/crowdsec").exists():
        shutil.rmtree(UNPACKED, ignore_errors=True)
        UNPACKED.mkdir(parents=True)
        subprocess.run(["apt-get", "download", "-q", "crowdsec"], cwd=UNPACKED, check=True)
        (package,) = UNPACKED.glob("crowdsec_*.deb")
        subprocess.run(["dpkg", "-x", package, UNPACKED], check=True)
        package.unlink()
    return UNPACKED / "usr/bin"


class CrowdSec:
    """A context manager: it runs inside."""

    url = f"http://127.0.0.1:{PORT}"

    def __init__(self, namespace: str, directory: Path) -> None:
        self._inside = ["ip", "netns", "exec", namespace]
        self._programs = programs()
        self._config, self.output = directory / "config.yaml", directory / "crowdsec.out"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        paths = {name: str(directory / name) for name in ("data_dir", "hub_dir")}
        for path in paths.values():
            Path(path).mkdir()
        files = {
            "simulation_path": "simulation: false\n",
            "index_path": "{}\n",
            "profiles_path": "name: default\nfilters:\n - Alert.Remediation == true\n"
            "decisions:\n - type: ban\n   duration: 4h\non_success: break\n",
            "credentials_path": "",
        }
        for name, content in files.items():
            paths[name] = str(directory / name)
            Path(paths[name]).write_text(content)
        server = {
            "enable": True,
            "listen_uri": f"127.0.0.1:{PORT}",
            "profiles_path": paths.pop("profiles_path"),
        }
        client = {"credentials_path": paths.pop("credentials_path")}
        self._config.write_text(  # JSON is YAML
            json.dumps(
                {
                    "common": {"daemonize": False, "log_media": "stdout", "working_dir": str(directory)},
                    "config_paths": {"config_dir": str(directory), **paths},
                    "db_config": {"type": "sqlite", "db_path": str(directory / "crowdsec.db")},
                    "api": {"client": client, "server": server},
                }
            )
        )
        self.ask("machines", "add", "tester", "--password", "secret", "-f", client["credentials_path"])

    def __enter__(self) -> CrowdSec:
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._inside, self._programs / "crowdsec", "-no-cs", "-c", self._config],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        wait_for(self._listens, START_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def _listens(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.output.read_text()
        done = subprocess.run(
            [*self._inside, "ss", "-Hltn", f"sport = :{PORT}"], capture_output=True, text=True, check=True
        )
        return bool(done.stdout.strip())

    def ask(self, *arguments: str) -> str:
        """`cscli` with these arguments; its standard output."""
        command = [*self._inside, str(self._programs / "cscli"), "-c", str(self._config), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
