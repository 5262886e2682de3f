# SPDX-License-Identifier: MIT
"""The boards as they are committed: made by the program, sound by the linter's rules, and provisioned."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.boards.__main__ import main
from tests.dashboards.draw import BOARDS, Board, board_named
from tests.dashboards.lint import expressions_of, lint, panels_of

ROOT = Path(__file__).resolve().parents[2]
UIDS = ("vftrace-fleet", "vftrace-migration", "vftrace-self", "vftrace-vf")


def test_the_boards_are_what_the_program_makes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_links_to_boards_stay_good() -> None:
    """uids are in bookmarks and in links of alerts: they are a promise."""
    assert tuple(sorted(path.stem for path in BOARDS.glob("*.json"))) == UIDS
    assert tuple(board_named(uid)["uid"] for uid in UIDS) == UIDS


@pytest.mark.parametrize("uid", UIDS)
def test_a_board_is_sound(uid: str) -> None:
    assert lint(board_named(uid)) == []


@pytest.mark.parametrize("uid", UIDS)
def test_links_of_panels_lead_to_boards(uid: str) -> None:
    found = re.findall(r"/d/([\w-]+)", str(board_named(uid)))
    assert set(found) <= set(UIDS)
    if uid == "vftrace-fleet":
        assert "vftrace-migration" in found


def test_a_host_leads_to_its_page() -> None:
    panels = {panel["title"]: panel for panel in panels_of(board_named("vftrace-fleet"))}
    overrides = panels["Last migrations"]["fieldConfig"]["overrides"]
    (host,) = (o for o in overrides if o["matcher"]["options"] == "Host")
    (links,) = (p["value"] for p in host["properties"] if p["id"] == "links")
    assert [link["url"] for link in links] == [
        "http://${__data.fields.Host}/",
        "https://${__data.fields.Host}/",
    ]


@pytest.mark.parametrize("uid", ["vftrace-fleet", "vftrace-migration", "vftrace-vf"])
def test_stops_and_resumes_are_marked(uid: str) -> None:
    expressions = [a["expr"] for a in board_named(uid)["annotations"]["list"]]
    for metric in ("stopped", "resumed"):
        assert any(f"vftrace_migration_{metric}_timestamp_seconds" in e for e in expressions)


def first(board: Board) -> Any:
    return panels_of(board)[0]


def retarget(board: Board, old: str, new: str) -> None:
    changed = False
    for panel in panels_of(board):
        for target in panel["targets"]:
            changed |= old in target["expr"]
            target["expr"] = target["expr"].replace(old, new)
    assert changed


FAULTS: dict[str, Callable[[Board], Any]] = {
    "editable": lambda b: b.update(editable=True),
    "no links": lambda b: b.update(links=[]),
    "one id": lambda b: first(b).update(id=panels_of(b)[1]["id"]),
    "called": lambda b: first(b).update(title=panels_of(b)[1]["title"]),
    "without a title": lambda b: first(b).update(title=""),
    "no description": lambda b: first(b).update(description=""),
    "no unit": lambda b: first(b)["fieldConfig"]["defaults"].pop("unit"),
    "no query": lambda b: first(b).update(targets=[]),
    "not the chosen one": lambda b: first(b).update(datasource={"type": "prometheus", "uid": "x"}),
    "lies over": lambda b: first(b)["gridPos"].update(x=4),
    "over the edge": lambda b: first(b)["gridPos"].update(w=25),
    "a hole": lambda b: first(b)["gridPos"].update(w=2),
    "variable job": lambda b: b["templating"]["list"][1].update(allValue=""),
    "does not follow": lambda b: b["templating"]["list"][1].update(refresh=1),
    "without job": lambda b: retarget(b, 'job=~"$job", ', ""),
    "without instance": lambda b: retarget(b, ', instance=~"$instance"', ""),
    "rate over 5m": lambda b: retarget(b, "$__rate_interval", "5m"),
    "is no metric": lambda b: retarget(b, "vftrace_migrations_total", "vftrace_migration_total"),
    "has no label": lambda b: retarget(b, "role=~", "rolle=~"),
    "what is no counter": lambda b: retarget(b, "vftrace_migrations_total{", "vftrace_vm_paused{"),
    "without le": lambda b: retarget(b, "sum by (le)", "sum by (kind)"),
    "milliseconds": lambda b: b["annotations"]["list"][0].update(
        expr='vftrace_vm_paused{job=~"$job"}'
    ),
}


@pytest.mark.parametrize("says", FAULTS)
def test_the_rules_find_faults(says: str) -> None:
    board = copy.deepcopy(board_named("vftrace-fleet"))
    FAULTS[says](board)
    assert any(says in fault for fault in lint(board)), lint(board)


def test_every_metric_has_a_place() -> None:
    """Every metric is on a board or in NOT_SHOWN."""
    from vftrace.outputs.exporter.metrics import METRICS, PREFIX

    shown = " ".join(expr for uid in UIDS for _, expr in expressions_of(board_named(uid)))
    missing = {metric.name for metric in METRICS if PREFIX + metric.name not in shown}
    assert missing <= NOT_SHOWN.keys(), missing - NOT_SHOWN.keys()
    assert not {name for name in NOT_SHOWN if name not in missing}


NOT_SHOWN = {
    "vm_paused": "an alert's business: at most scrapes it is 0",
    "dirty_sync_seconds": "a part of final-sync, which is shown",
    "recording_lost_records_total": "an alert's business: 0 unless a disk is full",
    "flight_recorder_files": "an operator looks at it by `vftrace list`",
    "flight_recorder_bytes": "bounded by --max-size",
    "flight_recorder_lost_files_total": "an alert's business: 0 unless a disk fails",
    "flight_recorder_write_errors_total": "beside flight_recorder_lost_files_total",
    "figures_timestamp_seconds": "reader_lateness_seconds is shown, and a prepared text adds a second at most",
}


# -- provisioning ----------------------------------------------------------------------------------


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / "dashboards" / path).read_text())


def test_grafana_gets_its_source_and_its_boards() -> None:
    (source,) = read("provisioning/datasources/vftrace.yml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://127.0.0.1:9090"
    (provider,) = read("provisioning/dashboards/vftrace.yml")["providers"]
    assert provider["type"] == "file"
    assert provider["allowUiUpdates"] is False


def test_what_compose_mounts_is_there() -> None:
    services = read("compose.yml")["services"]
    inside = {}
    for service in services.values():
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            if source.startswith("./"):
                assert (ROOT / "dashboards" / source).exists(), source
                inside[target] = source
    (provider,) = read("provisioning/dashboards/vftrace.yml")["providers"]
    assert inside[provider["options"]["path"]] == "./grafana"
    assert inside["/etc/grafana/provisioning"] == "./provisioning"
    for path in read("prometheus/prometheus.yml")["rule_files"]:
        assert inside["/etc/prometheus"] == "./prometheus"
        assert (ROOT / "dashboards" / "prometheus" / path).exists()


def test_the_scrape_interval_is_one() -> None:
    """Grafana computes $__rate_interval from its setting of Prometheus's interval."""
    (source,) = read("provisioning/datasources/vftrace.yml")["datasources"]
    scrape = read("prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
