"""The demo: two network namespaces, the real service in one of them, and ping as the witness.

Every step says what it expects and is checked; the exit status is 0 only if every step did what it says.
Owns its namespaces, a temporary directory and the service's process, and removes them whatever happens. It
touches no interface of the host. It must import nothing of the project: it uses it as an operator would.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

SERVER = f"ebpf-fw-demo-{os.getpid()}"
CLIENT = f"{SERVER}-client"
SERVER_ADDRESS, CLIENT_ADDRESS = "10.213.0.1", "10.213.0.2"
PINGS = 5
READY_TIMEOUT_S = 40.0
PROGRAM = Path(sys.executable).parent / "ebpf-fw"

CONFIGURATION = """\
[api]
listen = "unix:{directory}/api.sock"
[state]
directory = "{directory}/state"
[bpf]
pin_root = "/sys/fs/bpf/{server}"
[[interfaces]]
name = "veth0"
"""

GREEN, RED, BOLD, PLAIN = ("\033[32m", "\033[31m", "\033[1m", "\033[0m") if sys.stdout.isatty() else ("",) * 4


class StepFailed(Exception):
    """A step of the demo did not do what it says."""


@dataclass
class Steps:
    """Numbers and prints the steps; a step that is not as expected ends the demo."""

    number: int = 0

    def begin(self, title: str) -> None:
        self.number += 1
        print(f"\n{BOLD}{self.number}. {title}{PLAIN}", flush=True)

    def show(self, line: str) -> None:
        print(f"   {line}", flush=True)

    def expect(self, met: bool, line: str) -> None:
        print(f"   {GREEN}ok{PLAIN}   {line}" if met else f"   {RED}FAILED{PLAIN}   {line}", flush=True)
        if not met:
            raise StepFailed(line)


def run(*command: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise StepFailed(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@contextmanager
def namespaces() -> Iterator[None]:
    """Two namespaces, each with one end of a veth pair and an address. Deleting them deletes the pair."""
    try:
        for name in (SERVER, CLIENT):
            run("ip", "netns", "add", name)
        pair = f"veth0 netns {SERVER} type veth peer name veth0 netns {CLIENT}"
        run("ip", "link", "add", *pair.split())
        for name, address in ((SERVER, SERVER_ADDRESS), (CLIENT, CLIENT_ADDRESS)):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "veth0")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", "veth0", "up")
        yield
    finally:
        for name in (SERVER, CLIENT):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextmanager
def temporary_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ebpf-fw-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def service(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real service in its namespace; `ip netns exec` becomes the service, so its id is the service's."""
    configuration = directory / "config.toml"
    configuration.write_text(CONFIGURATION.format(directory=directory, server=SERVER))
    command = ["ip", "netns", "exec", SERVER, str(PROGRAM), "serve", "--config", str(configuration)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(api: httpx.Client, process: subprocess.Popen[bytes]) -> float:
    """Seconds until /readyz answered 200. Raises StepFailed where the service ends or takes too long."""
    started = time.monotonic()
    while time.monotonic() - started < READY_TIMEOUT_S:
        if process.poll() is not None:
            raise StepFailed(f"the service ended with status {process.returncode}")
        try:
            if api.get("/readyz").status_code == 200:
                return time.monotonic() - started
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise StepFailed(f"the service was not ready after {READY_TIMEOUT_S:.0f} s")


def ping() -> tuple[int, int]:
    """Ping the server from the client. Returns (sent, received)."""
    command = f"ip netns exec {CLIENT} ping -n -q -c {PINGS} -i 0.2 -W 1 {SERVER_ADDRESS}"
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", done.stdout)
    if counts is None:
        raise StepFailed(f"ping did not run: {(done.stderr or done.stdout).strip()}")
    return int(counts[1]), int(counts[2])


def expect_ping(steps: Steps, *, passing: bool) -> None:
    sent, received = ping()
    wanted = PINGS if passing else 0
    steps.expect(
        (sent, received) == (PINGS, wanted),
        f"ping {CLIENT_ADDRESS} → {SERVER_ADDRESS}: {sent} sent, {received} received (expected {wanted})",
    )


def call(steps: Steps, api: httpx.Client, method: str, path: str, expected: int, body: Any = None) -> Any:
    """Make one REST call, print it, and return the JSON of the answer (None where there is none)."""
    answer = api.request(method, path, json=body)
    steps.show(f"{method} {path}" + (f"  {json.dumps(body)}" if body is not None else ""))
    steps.expect(answer.status_code == expected, f"answer {answer.status_code} (expected {expected})")
    return answer.json() if answer.content else None


def describe_hooks(steps: Steps, api: httpx.Client) -> None:
    for interface in api.get("/v1/interfaces").json()["items"]:
        for hook in interface["hooks"]:
            program = f"program {hook['program_id']} attached, mode {hook['mode']}"
            steps.expect(bool(hook["attached"]), f"{interface['name']} {hook['hook']}: {program}")


def count_of(steps: Steps, api: httpx.Client, rule: str) -> int:
    stats = call(steps, api, "GET", f"/v1/rules/{rule}", 200)["stats"]
    steps.show(f"rule {rule}: {stats['packets']} packets, {stats['bytes']} bytes dropped")
    return int(stats["packets"])


def demonstrate(steps: Steps, stack: ExitStack, directory: Path) -> None:
    steps.begin("Two network namespaces, joined by a veth pair")
    stack.enter_context(namespaces())
    steps.expect(True, f"{SERVER} ({SERVER_ADDRESS}) and {CLIENT} ({CLIENT_ADDRESS})")

    steps.begin("The service, in the first namespace")
    process = stack.enter_context(service(directory))
    transport = httpx.HTTPTransport(uds=f"{directory}/api.sock")
    api = stack.enter_context(httpx.Client(transport=transport, base_url="http://ebpf-fw", timeout=10))
    steps.expect(True, f"ready after {wait_until_ready(api, process):.1f} s")
    describe_hooks(steps, api)

    steps.begin("No rules: ping passes")
    expect_ping(steps, passing=True)

    steps.begin("Add a rule over REST: drop what comes from the client")
    call(steps, api, "POST", "/v1/rules", 201, {"id": "demo", "sources": [CLIENT_ADDRESS]})

    steps.begin("Ping is blocked, and the rule counted it")
    expect_ping(steps, passing=False)
    steps.expect(count_of(steps, api, "demo") == PINGS, f"the rule's counter says {PINGS}")

    steps.begin("Delete the rule: ping passes again")
    call(steps, api, "DELETE", "/v1/rules/demo", 204)
    expect_ping(steps, passing=True)


def main() -> int:
    if os.geteuid() != 0:
        print("The demo makes network namespaces and needs root: sudo make demo", file=sys.stderr)
        return 1
    # A terminated demo must clean up as one that failed does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started, steps = time.monotonic(), Steps()
    with ExitStack() as stack:
        directory = stack.enter_context(temporary_directory())
        try:
            demonstrate(steps, stack, directory)
        except (StepFailed, httpx.HTTPError, KeyError) as error:
            print(f"\n{RED}The demo failed at step {steps.number}:{PLAIN} {error}", file=sys.stderr)
            log = directory / "log"
            if log.exists():
                print(f"The service's log:\n{log.read_text(errors='replace')}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        steps.begin("Tear down")
    steps.expect(not leftovers(), "service stopped, namespaces and files removed")
    print(f"\n{GREEN}Every step did what it says{PLAIN} ({time.monotonic() - started:.0f} s).")
    return 0


def leftovers() -> list[str]:
    return [name for name in (SERVER, CLIENT) if Path("/run/netns", name).exists()]


if __name__ == "__main__":
    sys.exit(main())
