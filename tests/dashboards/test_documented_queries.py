# SPDX-License-Identifier: MIT
"""The PromQL in the documentation: Prometheus parses each query, and each of our metrics in it exists."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from vftrace.outputs.exporter.metrics import METRICS

pytestmark = pytest.mark.needs("promtool")

ROOT = Path(__file__).resolve().parents[2]
QUERIES = [
    pytest.param(query.strip(), id=f"{page.stem}-{number}")
    for page in sorted((ROOT / "docs").glob("**/*.md"))
    for number, query in enumerate(
        re.findall(r"^```promql\n(.*?)^```", page.read_text(), re.M | re.S)
    )
]


def test_there_are_some() -> None:
    assert len(QUERIES) >= 5


@pytest.mark.parametrize("query", QUERIES)
def test_prometheus_parses_it(query: str, tmp_path: Path) -> None:
    rules = {"groups": [{"name": "docs", "rules": [{"record": "documented", "expr": query}]}]}
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps(rules))  # which is YAML too
    checked = subprocess.run(
        ["promtool", "check", "rules", file], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    known = {f"vftrace_{metric.name}" for metric in METRICS}
    known |= {name + "_total" for name in known}
    assert set(re.findall(r"\bvftrace_\w+", query)) <= known
