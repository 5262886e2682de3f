# SPDX-License-Identifier: MIT
"""Every expression of the boards, as Grafana would send it."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.dashboards.prom import ROOT, Series, Stage

BOARDS = tuple(sorted((ROOT / "dashboards" / "grafana").glob("*.json")))

_LABEL_VALUES = re.compile(
    r"label_values\((?:(?P<selector>.*),)?\s*(?P<label>\w+)\)\s*$", re.DOTALL
)
_QUERY_RESULT = re.compile(r"query_result\((?P<expr>.*)\)\s*$", re.DOTALL)


@dataclass(frozen=True)
class Expression:
    """`where` is a panel's title, `$name` of a variable, `@name` of an annotation."""

    board: str
    where: str
    text: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.board}: {self.where}: {self.text}"


def expressions(path: Path) -> Iterator[Expression]:
    """Return all expressions of a board: variables, annotations, panels and folded rows."""
    board = json.loads(path.read_text())
    uid = board["uid"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]
            text = query if isinstance(query, str) else query["query"]
            yield Expression(uid, f"${variable['name']}", text, True)
    for annotation in board["annotations"].get("list", ()):
        text = annotation.get("expr") or annotation.get("target", {}).get("expr")
        if text:
            yield Expression(uid, f"@{annotation['name']}", text, False)
    for panel in _panels(board["panels"]):
        for target in panel.get("targets", ()):
            yield Expression(uid, panel["title"], target["expr"], bool(target.get("instant")))


def _panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))


def substituted(text: str, rate: str, seconds: int, chosen: Mapping[str, str]) -> str:
    """Grafana's own variables for a range of `seconds`, and the board's: `chosen`, else all."""
    own = {
        "__rate_interval": rate,
        "__interval": "1s",
        "__range": f"{seconds}s",
        "__range_s": str(seconds),
    }

    def value(match: re.Match[str]) -> str:
        name = match["name"] or match["bare"]
        return own.get(name) or chosen.get(name, ".*")

    return re.sub(r"\$\{(?P<name>\w+)(?::\w+)?\}|\$(?P<bare>[A-Za-z_]\w*)", value, text)


def ask(stage: Stage, expression: Expression, seconds: int, chosen: Mapping[str, str]) -> int:
    """Return the number of values that can be drawn. Raises QueryError if Prometheus refuses the query."""
    text = substituted(expression.text, stage.rate_interval, seconds, chosen)
    if expression.where.startswith("$"):
        values = _LABEL_VALUES.match(text)
        if values is not None:
            return len(stage.label_values(values["label"], values["selector"] or ""))
        result = _QUERY_RESULT.match(text)
        assert result is not None, f"what kind of variable is this? {expression}"
        return len(stage.query(result["expr"]))
    found = stage.query(text) if expression.instant else stage.query_range(text)
    return sum(_drawn(series) for series in found)


def _drawn(series: Series) -> int:
    return sum(math.isfinite(value) for _, value in series.points)
