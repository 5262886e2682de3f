# SPDX-License-Identifier: MIT
"""Every golden recording through every output: outputs agree on each figure that two of them show.

Outputs are read as whoever uses them reads them: the text, the page, the protobufs, the exposition. What may
differ stands in EXPLAINED with its reason.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from pathlib import Path

import pytest

from tests.golden import rendered
from tests.golden.rendered import Figures, Shown, Subject
from tests.unit.test_otlp import Collector
from vftrace.cli import main
from vftrace.collect.pump import Pump
from vftrace.collect.replay import ReplaySource
from vftrace.outputs.exporter.accounts import Reading

GOLDEN = Path(__file__).parent
RECORDINGS = sorted(GOLDEN.rglob("*.vft.gz"))


@dataclass(frozen=True)
class Explained:
    """Why an output may show a figure where another shows that it is not known."""

    output: str
    figure: str
    """A pattern for its name."""
    why: str


EXPLAINED = (
    Explained("perfetto", "phase .*", "what lasts at the recording's end is drawn to the end"),
)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


def name_of(path: Path) -> str:
    return str(path.relative_to(GOLDEN)).removesuffix(".vft.gz")


def report(path: Path, out: Path, *words: str) -> bytes:
    with redirect_stderr(StringIO()):
        assert main(["report", str(path), "-o", str(out), *words]) == 0
    return out.read_bytes()


def exposition(path: Path) -> str:
    """A scrape after the recording's end."""
    pump = Pump(ReplaySource(path, speed=0))
    while not pump.ended:
        pump.step()
    return rendered.scraped(
        Reading(pump.snapshot(), pump.now_ns(), pump.host, (), pump.event_counts(), ended=True)
    )


def outputs(
    path: Path,
    tmp_path: Path,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> dict[str, Figures]:
    """What each output shows."""
    monkeypatch.setenv("COLUMNS", "400")
    collector.requests.clear()
    capsys.readouterr()
    assert main(["report", str(path), "--otlp-endpoint", collector.url]) == 0
    text = capsys.readouterr().out
    exact = rendered.of_json(json.loads(report(path, tmp_path / "o.json", "--format", "json")))
    perfetto = report(path, tmp_path / "o.pftrace", "--format", "perfetto")
    return {
        "json": exact | rendered.rates_of(exact),
        "text": rendered.of_text(text),
        "html": rendered.of_html(report(path, tmp_path / "o.html", "--format", "html").decode()),
        "perfetto": rendered.of_perfetto(perfetto),
        "otlp": rendered.of_spans(collector.spans()),
        "metrics": rendered.of_metrics(exposition(path)),
    }


@pytest.mark.parametrize("path", RECORDINGS, ids=name_of)
def test_what_two_outputs_show_is_the_same(
    path: Path,
    tmp_path: Path,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = outputs(path, tmp_path, collector, monkeypatch, capsys)
    by_figure: dict[tuple[Subject, str], dict[str, Shown]] = defaultdict(dict)
    for output, figures in shown.items():
        for (subject, name), figure in figures.items():
            by_figure[subject, name.removesuffix(" (overview)")].setdefault(
                f"{output}{' overview' if name.endswith(')') else ''}", figure
            )
    differ = [
        (subject, name, first, each[first], second, each[second])
        for (subject, name), each in by_figure.items()
        for first, second in combinations(each, 2)
        if not each[first].agrees(each[second])
        and not explained(name, {first: each[first], second: each[second]})
    ]
    assert differ == []


def explained(name: str, two: dict[str, Shown]) -> bool:
    """Whether one of two outputs may show a figure that the other does not know."""
    unknown = {output for output, figure in two.items() if figure.value is None}
    return len(unknown) == 1 and any(
        e.output in two.keys() - unknown and re.fullmatch(e.figure, name) for e in EXPLAINED
    )


def test_they_show_enough_to_be_compared(
    tmp_path: Path,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The readers above find what an output shows: else nothing would be compared."""
    path = GOLDEN / "recordings" / "dirty-ring.vft.gz"
    shown = outputs(path, tmp_path, collector, monkeypatch, capsys)
    wanted = {
        "text": ("outcome", "downtime", "sent", "new pages", "mean dirty rate", "round 3 rate"),
        "html": ("outcome", "downtime", "sent", "dirtied", "mean dirty rate", "round 3 rate"),
        "perfetto": ("outcome", "downtime", "sent", "dirty rates", "phase source precopy"),
        "otlp": ("outcome", "downtime", "sent", "new pages", "round 3 new_pages"),
    }
    for output, names in wanted.items():
        assert not {(0, name) for name in names} - shown[output].keys(), output
    vm = "5a397d47-83ff-5d65-8697-7a6b0e5ef4f7"
    assert {(vm, "new pages in all"), (vm, "sent in all")} <= shown["metrics"].keys()
    # The guest dirties 1,000 pages a second, and one more page each round (its truth file); 2,926 were found.
    assert shown["metrics"][vm, "new pages in all"].value == 2926
    assert shown["text"][0, "mean dirty rate"].agrees(Shown(1003 * 4096.0, 0.01 * 4096 * 1000))
