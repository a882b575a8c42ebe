"""Prometheus, its alerts and Grafana ask for names that there are."""

import json
import re
from pathlib import Path

import pytest
import yaml

from agentlace.operating.prometheus import SYSTEM
from agentlace.telemetry import METRICS, PREFIX

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "broker" / "grafana"
NAMES = {PREFIX + name for name in (*METRICS, *SYSTEM)}


def panels():
    return json.loads((GRAFANA / "agentlace.json").read_text())["panels"]


def expressions():
    rules = yaml.safe_load((ROOT / "broker" / "alerts.yml").read_text())["groups"][0]["rules"]
    yield from (pytest.param(rule["expr"], id=rule["alert"]) for rule in rules)
    for panel in panels():
        yield from (pytest.param(t["expr"], id=panel["title"]) for t in panel["targets"])


@pytest.mark.parametrize("expression", list(expressions()))
def test_names_exist(expression):
    asked = set(re.findall(rf"\b{PREFIX}\w+", expression))
    assert asked and asked <= NAMES
    for name in re.findall(rf"(?:rate|increase)\(({PREFIX}\w+)", expression):
        assert name.endswith("_total"), f"{name} does not only grow"


def test_panels_do_not_overlap():
    taken = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert max(x for x, _ in taken) < 24


def test_the_parts_fit_together():
    prometheus = yaml.safe_load((ROOT / "broker" / "prometheus.yml").read_text())
    assert prometheus["rule_files"] == ["alerts.yml"]
    (source,) = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )["datasources"]
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}


def test_every_name_is_in_the_page():
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| \w+ \| (.*?) \|$", page, re.MULTILINE))
    wanted = {PREFIX + name: metric.help for name, metric in {**METRICS, **SYSTEM}.items()}
    assert rows == wanted
