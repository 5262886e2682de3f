# SPDX-License-Identifier: MIT
"""`report --format json` of every golden recording fits report.schema.json, and names what it lists."""

import json
from pathlib import Path

import jsonschema
import pytest

from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.model.report import live_report
from vftrace.outputs.report.json import report_json

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.vft.gz"))
SCHEMA = json.loads(
    (Path(__file__).parent.parent.parent / "vftrace" / "report.schema.json").read_text()
)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name.partition(".")[0])
def test_the_report_fits_the_schema(path: Path) -> None:
    recording = Recording(path)
    report = report_json(live_report(recording.host, track(recording).snapshot()))
    jsonschema.validate(json.loads(json.dumps(report)), SCHEMA)


def test_the_schema_itself_is_sound() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_wrong_report_does_not_fit() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": 1, "hosts": [], "migrations": [{}]}, SCHEMA)
