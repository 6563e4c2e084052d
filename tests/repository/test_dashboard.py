"""The Grafana dashboard can be imported, and asks only for metrics that /metrics has, by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from feeds.crowdsec import Progress
from feeds.decisions import Decisions
from firewall.hits import Hits
from tests.api.client import ApiClient
from tests.memory_kernel import memory_enforcer

PATH = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"
METRIC = re.compile(r"\b(?:ebpf_fw|process)_[a-z0-9_]+\b")
SELECTOR = re.compile(r"\b((?:ebpf_fw|process)_[a-z0-9_]+)\{([^}]*)\}")
GROUPING = re.compile(r"\bby \(([^)]*)\)")
FROM_PROMETHEUS = {"instance", "job"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """By name of a sample, of a service to which everything happened."""
    enforcer, kernel = memory_enforcer(tmp_path_factory.mktemp("state"), {"interfaces": [{"name": "eth0"}]})
    app = create_app(enforcer)
    found: dict[str, set[str]] = {}
    with ApiClient(app) as api:
        rule = {"id": "a", "sources": "10.0.0.1", "labels": {"metrics": "true"}}
        assert api("POST", "/v1/rules", rule).status_code == 201
        (entry,) = kernel.entries.values()
        kernel.hits[entry.handle] = Hits(1, 100, 1.0)
        assert api("PUT", "/v1/sets/bad").status_code == 201
        state = SimpleNamespace(entries=1, failures=0, last_success=1.0, refusals={})
        feed = SimpleNamespace(feed=SimpleNamespace(name="bad"), state=state)
        bouncer = SimpleNamespace(progress=Progress(last_pull=1.0), decisions=Decisions())
        app.state.running.feeds, app.state.running.crowdsec = SimpleNamespace(all=lambda: [feed]), bouncer
        for family in text_string_to_metric_families(api("GET", "/metrics").text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    app.state.running.close()
    enforcer.stop()
    return found


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in dashboard["panels"] if each["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in panels(dashboard):
        yield from (target["expr"] for target in panel["targets"])
    yield from (each["query"]["query"] for each in dashboard["templating"]["list"])


def test_every_metric_of_the_dashboard_exists(dashboard: dict[str, Any], labels: dict[str, set[str]]) -> None:
    used = {name for text in expressions(dashboard) for name in METRIC.findall(text)}
    assert len(used) > 15
    assert used - labels.keys() == set()


def test_every_metric_of_ours_is_on_the_dashboard(
    dashboard: dict[str, Any], labels: dict[str, set[str]]
) -> None:
    text = " ".join(expressions(dashboard))
    stems = {re.sub(r"_(bucket|count|sum)$", "", name) for name in labels if name.startswith("ebpf_fw_")}
    stems = {each for each in stems if not each.endswith("_created")}
    assert [each for each in sorted(stems) if each not in text] == []


def test_selectors_and_groupings_use_labels_that_the_metric_has(
    dashboard: dict[str, Any], labels: dict[str, set[str]]
) -> None:
    for text in expressions(dashboard):
        selected = SELECTOR.findall(text)
        for name, selector in selected:
            asked = set(re.findall(r"([a-z_]+)\s*=", selector))
            assert asked <= labels[name] | FROM_PROMETHEUS, text
        for group in GROUPING.findall(text):
            grouped = {each.strip() for each in group.split(",")}
            assert selected and all(grouped <= labels[name] | FROM_PROMETHEUS for name, _ in selected), text


def test_the_data_source_is_asked_for_at_the_import(dashboard: dict[str, Any]) -> None:
    (asked,) = dashboard["__inputs"]
    assert (asked["type"], asked["pluginId"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": f"${{{asked['name']}}}"}
    assert dashboard["id"] is None
    for panel in panels(dashboard):
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
    assert all(each["datasource"] == source for each in dashboard["templating"]["list"])


def test_panels_are_whole_named_and_do_not_lie_on_each_other(dashboard: dict[str, Any]) -> None:
    everything = dashboard["panels"]
    assert dashboard["schemaVersion"] >= 36 and dashboard["uid"] and dashboard["title"]
    assert len({each["id"] for each in everything}) == len(everything)
    kinds = {each["id"] for each in dashboard["__requires"] if each["type"] == "panel"}
    taken: set[tuple[int, int]] = set()
    for each in everything:
        place = each["gridPos"]
        assert each["title"] and place["x"] + place["w"] <= 24
        assert each["type"] == "row" or each["type"] in kinds
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, each["title"]
        taken |= cells


def test_the_map_fill_has_thresholds(dashboard: dict[str, Any]) -> None:
    (fill,) = (each for each in panels(dashboard) if each["title"] == "Map fill")
    values = [step["value"] for step in fill["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    assert values == [None, 0.75, 0.9]
