"""Killed in the middle of changes by many clients: what was acknowledged is there, in the store and in the maps."""

from __future__ import annotations

import ipaddress
import threading
from pathlib import Path

import httpx
import pytest

from firewall.kernel.bpf import Map
from firewall.layout import ADDRESS_ENTRY, FRONT_ROW, PREFIX4
from tests.datapath.contents import key_of
from tests.netns.topology import wait_until
from tests.netns.world import World

CLIENTS = 8


class Client(threading.Thread):
    """Adds rules of its own until the service is gone; deletes every third that it was told is there."""

    def __init__(self, socket: Path, number: int, generation: int) -> None:
        super().__init__(daemon=True)
        self._socket = socket
        self._place = f"{generation}-{number}"
        self._network = f"10.{100 + generation}.{number}"
        self.there: dict[str, str] = {}
        self.gone: dict[str, str] = {}
        self.doubtful: set[str] = set()
        self.refused: list[int] = []

    def run(self) -> None:
        transport = httpx.HTTPTransport(uds=str(self._socket))
        with httpx.Client(transport=transport, base_url="http://ebpf-fw", timeout=30) as http:
            try:
                for at in range(100_000):
                    self._step(http, at)
            except httpx.TransportError:
                return

    def _step(self, http: httpx.Client, at: int) -> None:
        address = f"{self._network}.{at % 256}"
        rule_id = f"s{self._place}-{at}"
        body = {"id": rule_id, "sources": [address], "priority": 1000 + at // 256}
        self.doubtful.add(rule_id)
        added = http.post("/v1/rules", json=body)
        assert added.status_code == 201, added.text
        self.there[rule_id] = address
        # Another rule under the same id is refused, and must leave no trace.
        self.refused.append(http.post("/v1/rules", json={**body, "sources": ["192.0.2.77"]}).status_code)
        if at % 3 == 2:
            self.there.pop(rule_id)
            assert http.delete(f"/v1/rules/{rule_id}").status_code == 204
            self.gone[rule_id] = address
        self.doubtful.discard(rule_id)


def addresses_in_maps(world: World) -> set[str]:
    entries = Map.pinned(world.daemon.pin_root / "maps" / "address4")
    try:
        found = [key["address"].tolist() for key, _ in entries.dump(PREFIX4, ADDRESS_ENTRY)]
    finally:
        entries.close()
    numbers = (int(number) for some in found for number in some)
    behind = {str(ipaddress.ip_address(number.to_bytes(4, "little"))) for number in numbers}
    return behind | addresses_in_rows(world)


def addresses_in_rows(world: World) -> set[str]:
    """The front's and those of a large table: whatever holds none is empty."""
    found = set()
    for name in ("address_front", "address_rows0", "address_rows1"):
        table = Map.pinned(world.daemon.pin_root / "maps" / name)
        rows = table.info.max_entries * table.info.value_size // FRONT_ROW.itemsize
        keys = table.mapped_part(FRONT_ROW, 0, rows)["key"]
        found |= {str(ipaddress.ip_address(key_of(int(key)).address)) for key in keys[keys != 0]}
        table.close()
    return found


def ids_in_service(world: World) -> dict[str, str]:
    rules = world.api.get("/v1/ruleset").json()["rules"]
    return {rule["id"]: rule["sources"][0] for rule in rules}


@pytest.mark.parametrize("moments_ms", [(400, 700, 1000)])
def test_what_was_acknowledged_in_a_storm_is_there_after_a_kill(
    world: World, moments_ms: tuple[int, ...]
) -> None:
    expected: dict[str, str] = {}
    for generation, moment_ms in enumerate(moments_ms):
        clients = [Client(world.daemon.socket, number, generation) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        threading.Event().wait(moment_ms / 1000)
        wait_until(lambda all_of=clients: all(len(each.there) > 5 for each in all_of), "all clients add")
        world.kill9()
        for client in clients:
            client.join(30)
            expected |= client.there
        after_kill = addresses_in_maps(world)
        assert set(expected.values()) <= after_kill, (
            "acknowledged, and not in the maps that outlive the service"
        )
        assert "192.0.2.77" not in after_kill
        world.daemon.start()
        found = ids_in_service(world)
        doubtful = {rule_id for client in clients for rule_id in client.doubtful}
        assert len(doubtful) <= CLIENTS
        assert {rule_id: found.get(rule_id) for rule_id in expected.keys() - doubtful} == {
            rule_id: address for rule_id, address in expected.items() if rule_id not in doubtful
        }
        assert found.keys() <= expected.keys() | doubtful, "deleted or never asked for"
        assert all(status == 409 for client in clients for status in client.refused)
        assert addresses_in_maps(world) == set(found.values())
        expected = found
