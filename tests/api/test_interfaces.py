"""/v1/interfaces: attaching, detaching, and what is told about both."""

from __future__ import annotations

import errno

import pytest

from firewall.datapath import Attached
from tests.api.client import ApiClient, pointers
from tests.memory_kernel import MemoryKernel


def test_at_first_no_interface_is_protected(api: ApiClient) -> None:
    assert api("GET", "/v1/interfaces").json() == {"items": [], "total": 0}


@pytest.mark.parametrize("body", [None, {}, {"mode": "auto", "ingress": True, "egress": True}])
def test_attaching_needs_no_body(api: ApiClient, body: dict[str, object] | None) -> None:
    attached = api("PUT", "/v1/interfaces/eth0", body)
    assert attached.status_code == 200
    state = attached.json()
    assert (state["mode"], state["actual_mode"], state["native_unavailable"]) == ("auto", "native", None)
    assert [(hook["hook"], hook["attached"]) for hook in state["hooks"]] == [
        ("ingress", True),
        ("egress", True),
    ]
    assert api("GET", "/v1/interfaces/eth0").json() == state
    assert api("GET", "/v1/interfaces").json() == {"items": [state], "total": 1}


def test_attaching_again_changes_how(api: ApiClient) -> None:
    api("PUT", "/v1/interfaces/eth0")
    state = api("PUT", "/v1/interfaces/eth0", {"mode": "generic", "egress": False}).json()
    assert (state["mode"], state["actual_mode"], state["egress"]) == ("generic", "generic", False)
    assert [hook["attached"] for hook in state["hooks"]] == [True, False]


def test_why_native_was_not_possible_is_told(api: ApiClient, kernel: MemoryKernel) -> None:
    kernel.no_native.add("eth1")
    state = api("PUT", "/v1/interfaces/eth1").json()
    assert state["actual_mode"] == "generic"
    assert "native mode" in state["native_unavailable"]


def test_detaching_frees_both_hooks(api: ApiClient, kernel: MemoryKernel) -> None:
    api("PUT", "/v1/interfaces/eth0")
    assert api("DELETE", "/v1/interfaces/eth0").status_code == 204
    assert kernel.hooks == {}
    assert api("GET", "/v1/interfaces/eth0").status_code == 404


@pytest.mark.parametrize(("method", "name"), [("GET", "eth0"), ("DELETE", "eth0"), ("PUT", "eth9")])
def test_an_unknown_interface_is_a_404(api: ApiClient, method: str, name: str) -> None:
    missing = api(method, f"/v1/interfaces/{name}")
    assert (missing.status_code, missing.json()["code"]) == (404, "interface_not_found")
    assert missing.json()["hint"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"mode": "fast"}, "/mode"),
        ({"ingress": 1}, "/ingress"),
        ({"egress": "yes"}, "/egress"),
        ({"ingres": True}, "/ingres"),
        ({"ingress": False, "egress": False}, "/ingress"),
        ([], ""),
    ],
)
def test_a_wrong_body_attaches_nothing(
    api: ApiClient, kernel: MemoryKernel, body: object, pointer: str
) -> None:
    refused = api("PUT", "/v1/interfaces/eth0", body)
    assert (refused.status_code, pointers(refused)) == (422, [pointer])
    assert kernel.hooks == {}


def test_a_refusal_of_the_kernel_names_the_errno(api: ApiClient, kernel: MemoryKernel) -> None:
    kernel.fail_next = errno.EPERM
    refused = api("PUT", "/v1/interfaces/eth0", {"mode": "generic"})
    assert (refused.status_code, refused.json()["code"]) == (503, "kernel_refused")
    assert refused.json()["errno"] == "EPERM"
    assert "EPERM" in refused.json()["detail"]
    assert refused.json()["hint"]
    assert api("GET", "/v1/interfaces").json()["total"] == 0


def test_another_program_on_the_hook_is_a_conflict_and_stays(api: ApiClient, kernel: MemoryKernel) -> None:
    other = kernel.hooks["eth0", 0] = Attached(7, "other", "native", False)
    refused = api("PUT", "/v1/interfaces/eth0", {"mode": "native"})
    assert (refused.status_code, refused.json()["code"]) == (409, "program_conflict")
    assert kernel.hooks == {("eth0", 0): other}
