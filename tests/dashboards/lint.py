# SPDX-License-Identifier: MIT
"""What Grafana's dashboard-linter asks of boards, and a little more: pure functions on a board's JSON."""

import re
from collections.abc import Iterator
from typing import Any

from vftrace.outputs.exporter.metrics import METRICS, PREFIX

Board = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN = ('job=~"$job"', 'instance=~"$instance"')
GRID_WIDTH = 24

# The metrics that Prometheus and client libraries add to each target.
_FOREIGN = {
    "up",
    "scrape_duration_seconds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
}
_SUFFIXES = ("_bucket", "_sum", "_count")
_SELECTOR = re.compile(r"\b([a-z_:]+)\{([^}]*)\}")
_WINDOW = re.compile(r"\b(rate|irate|increase)\(([^\[]*)\[([^\]]*)\]\)")
_KNOWN = {PREFIX + metric.name: metric for metric in METRICS}


def panels_of(board: Board) -> list[Any]:
    """All panels but the headings."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions_of(board: Board) -> Iterator[tuple[str, str]]:
    """(where, expression) of every panel and annotation."""
    for panel in panels_of(board):
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in board["annotations"].get("list", []):
        yield f"annotation {annotation['name']}", annotation["expr"]


def lint(board: Board) -> list[str]:
    """Return the faults of a board, one line each."""
    return [
        *_whole(board),
        *_variables(board),
        *(fault for panel in panels_of(board) for fault in _panel(panel)),
        *_places(board),
        *(f"{where}: {f}" for where, expr in expressions_of(board) for f in _expression(expr)),
        *_annotations(board),
    ]


def _whole(board: Board) -> Iterator[str]:
    if board["editable"] is not False:
        yield "editable: what is changed in Grafana is lost with the next version"
    for key in ("uid", "title", "description", "refresh", "tags"):
        if not board.get(key):
            yield f"no {key}"
    numbers = [panel["id"] for panel in board["panels"]]
    if len(set(numbers)) != len(numbers):
        yield "two panels with one id"
    titles = [panel["title"] for panel in panels_of(board)]
    yield from (
        f"two panels are called {title}" for title in {t for t in titles if titles.count(t) > 1}
    )
    if not any(
        link["type"] == "dashboards" and link["keepTime"] and link["includeVars"]
        for link in board["links"]
    ):
        yield "no links to the other boards"


def _variables(board: Board) -> Iterator[str]:
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    source = variables.get("datasource", {})
    if (source.get("type"), source.get("query")) != ("datasource", "prometheus"):
        yield "no variable datasource"
    for name in ("job", "instance"):
        variable = variables.get(name, {})
        if not (
            variable.get("multi")
            and variable.get("includeAll")
            and variable.get("allValue") == ".+"
        ):
            yield f"variable {name}: not there, or not for several, or all of them is not .+"
    for name, variable in variables.items():
        if not variable.get("label"):
            yield f"variable {name}: no label"
        if variable["type"] == "query":
            if variable["datasource"] != DATASOURCE:
                yield f"variable {name}: its data source is not the chosen one"
            if variable["refresh"] != 2:
                yield f"variable {name}: does not follow the time that is shown"


def _panel(panel: Any) -> Iterator[str]:
    name = panel["title"]
    if not name:
        yield "a panel without a title"
    if not panel.get("description", "").endswith("."):
        yield f"{name}: no description"
    if panel["datasource"] != DATASOURCE:
        yield f"{name}: its data source is not the chosen one"
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield f"{name}: no unit"
    if not panel["targets"]:
        yield f"{name}: no query"
    for target in panel["targets"]:
        if target["datasource"] != DATASOURCE:
            yield f"{name} {target['refId']}: its data source is not the chosen one"


def _places(board: Board) -> Iterator[str]:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        if cells & taken:
            yield f"{panel['title']}: lies over another panel"
        if at["x"] + at["w"] > GRID_WIDTH:
            yield f"{panel['title']}: reaches over the edge"
        taken |= cells
    bottom = max(y for _, y in taken)
    holes = {(x, y) for x in range(GRID_WIDTH) for y in range(bottom + 1)} - taken
    if holes:
        yield f"a hole in the grid at {min(holes, key=lambda cell: (cell[1], cell[0]))}"


def _expression(expr: str) -> Iterator[str]:
    selectors = _SELECTOR.findall(expr)
    if not selectors:
        yield f"no selector: {expr}"
    for metric, matchers in selectors:
        # What a recording rule has joined over hosts has neither job nor instance.
        if ":" in metric:
            continue
        yield from (f"{metric} without {chosen}" for chosen in CHOSEN if chosen not in matchers)
        base = next(
            (metric.removesuffix(s) for s in _SUFFIXES if metric.removesuffix(s) in _KNOWN), metric
        )
        known = _KNOWN.get(base)
        if known is None and metric not in _FOREIGN:
            yield f"{metric} is no metric of vftrace"
        labels = {m.split("=")[0].rstrip("!~").strip() for m in matchers.split(", ")}
        if known is not None and (odd := labels - {*known.labels, "job", "instance"}):
            yield f"{metric} has no label {', '.join(sorted(odd))}"
    bare = re.findall(rf"\b{PREFIX}\w+(?![\w{{])", expr)
    yield from (f"{metric} of all jobs" for metric in bare if "{" not in metric and ":" not in expr)
    for function, inner, window in _WINDOW.findall(expr):
        allowed = (
            {"$__rate_interval"} if function != "increase" else {"$__rate_interval", "$__range"}
        )
        if window not in allowed:
            yield f"{function} over {window}"
        if not re.search(r"(_total|_bucket|_sum|_count)\{", inner):
            yield f"{function} of what is no counter: {inner}"
    for metric, _ in selectors:
        if metric.endswith("_bucket") and "le)" not in expr:
            yield f"buckets of {metric} without le"


def _annotations(board: Board) -> Iterator[str]:
    for annotation in board["annotations"].get("list", []):
        if annotation["datasource"] != DATASOURCE:
            yield f"annotation {annotation['name']}: its data source is not the chosen one"
        if annotation.get("useValueForTime") and not annotation["expr"].startswith("1000 * "):
            yield f"annotation {annotation['name']}: Grafana's times are milliseconds"
