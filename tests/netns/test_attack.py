"""The same attack as tests/api/test_attack.py on the real service, with a kernel that must take what is acknowledged.

`make schemathesis` runs it for ATTACK_SECONDS=600.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.api.attack import attack
from tests.netns.topology import run, wait_until
from tests.netns.traffic import add_rule, ping
from tests.netns.world import World

SECONDS = float(os.environ.get("ATTACK_SECONDS", "12"))
MakeWorld = Callable[..., World]


def test_the_real_service_survives_and_still_filters(make_world: MakeWorld) -> None:
    world = make_world(start=False, events={"rate": 1000})
    listen = [f"unix:{world.daemon.socket}", "127.0.0.1:9378"]
    # The attack makes tokens, and nobody would let it in after the first.
    open_to_it = {"listen": listen, "authentication": "none"}
    world.daemon.configure({"api": open_to_it, "interfaces": [{"name": "fw0"}]})
    namespace, process = world.topology.protected, world.start().daemon.pid
    run("ip", "-n", namespace, "link", "set", "lo", "up")
    attack("http://127.0.0.1:9378", SECONDS, world.topology.directory, "ip", "netns", "exec", namespace)

    assert world.daemon.pid == process and "Traceback" not in world.daemon.log
    assert world.api.post("/v1/panic", json={"on": False}).status_code == 200
    if world.api.get("/v1/changes").json()["pending"]:
        assert world.api.post("/v1/confirm").status_code == 200
    assert world.api.put("/v1/ruleset?allow_lockout=true", json={"rules": []}).status_code == 200
    for name in [
        each["name"] for each in world.api.get("/v1/interfaces").json()["items"] if each["name"] != "fw0"
    ]:
        assert world.api.delete(f"/v1/interfaces/{name}").status_code == 204
    assert world.api.put("/v1/interfaces/fw0", json={}).status_code == 200
    wait_until(lambda: world.api.get("/readyz").status_code == 200, "it is ready", 20)
    assert ping(world).passes()
    add_rule(world, sources=["10.90.0.2"])
    assert ping(world).is_blocked()
