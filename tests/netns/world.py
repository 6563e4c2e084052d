"""A test's world: the protected namespace, the peer, the service between them, and traffic to judge it by.

    peer  (peer0 10.90.0.2 fd90:0::2) ───veth─── (fw0 10.90.0.1 fd90:0::1)  protected, where the service runs

Owns both agents and the service. It must not know rules or verdicts: it answers what arrived.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

import httpx

from tests.netns.agent_process import Agent
from tests.netns.daemon import Daemon
from tests.netns.topology import Link, Topology, nodad, run

BLOCKED_AFTER_S = 0.6
ARRIVES_WITHIN_S = 5.0


class World:
    """Namespaces and agents, and the service once it is started. Leaves nothing behind."""

    def __init__(self, topology: Topology, configuration: Mapping[str, Any] | None = None) -> None:
        self.topology = topology
        self.links = topology.links
        self._configuration = {"interfaces": [{"name": link.interface} for link in self.links]}
        self._configuration.update(configuration or {})
        self._stack = ExitStack()

    @property
    def link(self) -> Link:
        return self.links[0]

    @property
    def api(self) -> httpx.Client:
        return self.daemon.client

    def __enter__(self) -> World:
        with ExitStack() as stack:
            stack.callback(self.topology.remove)
            self.topology.build()
            stack.callback(self._refuse_strangers)
            self.protected, self.peer = Agent(self.topology.protected), Agent(self.topology.peer)
            stack.callback(self.protected.close)
            stack.callback(self.peer.close)
            directory, pin_root = self.topology.directory, self.topology.bpffs / "fw"
            self.daemon = Daemon(self.topology.protected, directory, pin_root, self._configuration)
            stack.enter_context(self.daemon)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        leaks = self.topology.leaks()
        assert not leaks, f"the test left behind: {', '.join(leaks)}"

    def _refuse_strangers(self) -> None:
        strangers = self.topology.strangers()
        assert not strangers, f"the test left running: {', '.join(strangers)}"

    # The service

    def start(self) -> World:
        self.daemon.start()
        return self

    def kill9(self) -> None:
        self.daemon.kill9()

    def stop(self) -> int:
        return self.daemon.stop()

    def restart(self) -> None:
        self.daemon.restart()

    # Traffic. From the peer to the protected namespace, unless `outward`.

    def ping(
        self,
        family: int = 4,
        count: int = 3,
        *,
        link: int = 0,
        source: str | None = None,
        outward: bool = False,
        timeout_s: float = BLOCKED_AFTER_S,
    ) -> int:
        """Send echo requests and return how many were answered."""
        sender, target = self._ends(link, family, outward)
        command = ["ip", "netns", "exec", sender.namespace, "ping", f"-{family}", "-n", "-q"]
        command += ["-c", str(count), "-i", "0.02", "-W", str(timeout_s)]
        command += ["-I", source] if source else []
        done = subprocess.run([*command, target], capture_output=True, text=True, check=False)
        received = re.search(r"(\d+) received", done.stdout)
        if received is None:
            raise RuntimeError(f"ping {target} did not run: {done.stderr or done.stdout}")
        return int(received[1])

    def tcp_connect(self, port: int, family: int = 4, **options: Any) -> bool:
        """Connect to an echo port, send, and say whether the echo came back. Options as in `exchange`."""
        return self.exchange("tcp", port, family, **options) == "answered"

    def udp_echo(self, port: int, family: int = 4, **options: Any) -> bool:
        """Send a datagram to an echo port and say whether the echo came back. Options as in `exchange`."""
        return self.exchange("udp", port, family, **options) == "answered"

    def exchange(
        self,
        transport: str,
        port: int,
        family: int = 4,
        *,
        link: int = 0,
        source: str | None = None,
        source_port: int = 0,
        outward: bool = False,
        timeout_s: float = BLOCKED_AFTER_S,
    ) -> str:
        """One message to an echo port: "answered", "timeout", or the name of the socket's error."""
        sender, target = self._ends(link, family, outward)
        (self.peer if outward else self.protected).listen(transport, port)
        return str(
            sender.call(
                "exchange",
                transport=transport,
                family=family,
                address=target,
                port=port,
                source=source,
                source_port=source_port,
                timeout_s=timeout_s,
            )
        )

    def send_frame(self, *frames: bytes, link: int = 0) -> None:
        """Send frames from the peer, as they are; they meet the ingress hook."""
        self.peer.call("send", interface=self.links[link].peer_interface, frames=[f.hex() for f in frames])

    def send_from_protected(self, *frames: bytes, link: int = 0) -> None:
        """Send frames from the protected namespace, as they are; they meet the egress hook."""
        self.protected.call("send", interface=self.links[link].interface, frames=[f.hex() for f in frames])

    def flood(self, frame: bytes, *, pause_s: float = 0.0005) -> AbstractContextManager[Flood]:
        """Send a frame from the peer over and over while the context lasts."""
        return Flood(self, frame, pause_s)

    def arrives(self, frame: bytes, needle: bytes, *, link: int = 0, outward: bool = False) -> bool:
        """Send a frame and say whether a frame that holds the needle passed the hook on its way.

        A marker frame (not IP, which always passes) follows it: once that has come, the frame was dropped.
        The tap sees a frame without its outer VLAN tag, so choose a needle from the payload.
        """
        ends = self.links[link]
        taker, interface = (self.peer, ends.peer_interface) if outward else (self.protected, ends.interface)
        marker = b"\xff" * 6 + b"\x02\0\0\0\0\x99" + b"\x88\xb5" + b"marker " + needle + bytes(46)
        taker.call("capture", interface=interface)
        (self.send_from_protected if outward else self.send_frame)(frame, marker, link=link)
        first = taker.call("captured", interface=interface, needle=needle.hex(), timeout_s=ARRIVES_WITHIN_S)
        taker.call("stop_capture", interface=interface)
        if first is None:
            raise TimeoutError("neither the frame nor the marker behind it arrived")
        return bytes.fromhex(first) != marker

    def add_peer_address(self, address: str, *, link: int = 0) -> None:
        """Give the peer one more address, reachable from the other end, used where it is asked for."""
        ends, family = self.links[link], 6 if ":" in address else 4
        host = f"{address}/{128 if family == 6 else 32}"
        peer, protected = self.topology.peer, self.topology.protected
        options = [*nodad(family), *(["preferred_lft", "0"] if family == 6 else [])]
        run("ip", "-n", peer, "address", "replace", host, "dev", ends.peer_interface, *options)
        run("ip", "-n", protected, "route", "replace", host, "via", ends.peer_address(family))

    def _ends(self, link: int, family: int, outward: bool) -> tuple[Agent, str]:
        ends = self.links[link]
        return (self.protected, ends.peer_address(family)) if outward else (self.peer, ends.address(family))


class Flood:
    """`sent`, once it has ended, and `passed`: whether one of its frames came past the ingress hook."""

    def __init__(self, world: World, frame: bytes, pause_s: float) -> None:
        self._world, self._frame, self._pause_s = world, frame, pause_s
        self.sent = 0
        self.passed = False

    def __enter__(self) -> Flood:
        link = self._world.link
        self._world.protected.call("capture", interface=link.interface)
        self._world.peer.call(
            "start_flood", interface=link.peer_interface, frame=self._frame.hex(), pause_s=self._pause_s
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        link, protected = self._world.link, self._world.protected
        self.sent = self._world.peer.call("stop_flood", interface=link.peer_interface)
        needle = self._frame[-16:].hex()
        found = protected.call("captured", interface=link.interface, needle=needle, timeout_s=0.5)
        protected.call("stop_capture", interface=link.interface)
        self.passed = found is not None
