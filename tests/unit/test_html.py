# SPDX-License-Identifier: MIT
"""The HTML report: one file that needs nothing else, with the figures of the JSON."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.unit.two_hosts import RECORDINGS, boot_of, golden
from vftrace.analysis.hosts.join import join_hosts
from vftrace.cli import main
from vftrace.collect.merge import load
from vftrace.model.report import Report
from vftrace.outputs.report.html import render_html
from vftrace.outputs.report.timeline import timeline_of
from vftrace.units import format_ns

BROWNOUTS = sorted(RECORDINGS.parent.glob("brownouts/*.vft.gz"))
"""Recordings that name each vCPU and each thread."""
NAMES = sorted(path.name.removesuffix(".vft.gz") for path in RECORDINGS.glob("*.vft.gz"))


class Page(HTMLParser):
    """Checks that every element is closed, and gathers what refers to something."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.refers: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self._note(attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data"):
                self.refers.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def page(name: str, tmp_path: Path) -> str:
    out = tmp_path / "report.html"
    assert (
        main(["report", "--format", "html", "-o", str(out), str(RECORDINGS / f"{name}.vft.gz")])
        == 0
    )
    return out.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_one_file_that_needs_nothing_else(name: str, tmp_path: Path) -> None:
    text = page(name, tmp_path)
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(found.seen)
    assert all(ref.startswith("#") and ref[1:] in found.ids for ref in found.refers)
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme:dark" in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_and_the_drawing(name: str, tmp_path: Path) -> None:
    text = page(name, tmp_path)
    migrations = boot_of(*golden(name)).snapshot.migrations
    shown = " ".join(Page(text).text.split())
    for m in migrations:
        if m.downtime.vcpu_ns is not None:
            assert format_ns(m.downtime.vcpu_ns) in shown
    drawings = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(drawings) >= len(migrations)
    for drawing in drawings:
        width, height = map(float, drawing.attrib["viewBox"].split()[2:])
        for rect in drawing.iter("rect"):
            x, w = float(rect.attrib["x"]), float(rect.attrib["width"])
            y, h = float(rect.attrib["y"]), float(rect.attrib["height"])
            assert x >= 0
            # What is too short to see is drawn 1.5 wide, at the right edge too.
            assert x + w <= width
            assert y >= 0
            assert y + h <= height
            assert w > 0


@pytest.mark.parametrize("path", [*RECORDINGS.glob("*.gz"), *BROWNOUTS], ids=lambda p: p.name)
def test_no_label_is_cut(path: Path) -> None:
    """A character of 12 px sans-serif is 7 wide on average: DejaVu Sans has 6.7 for these labels."""
    report = join_hosts(load([path]))
    text = render_html(report)
    labels = [
        (e.text or "", float(e.attrib["x"]))
        for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)
        for e in ET.fromstring(svg).iter("text")
        if e.attrib["class"] == "label"
    ]
    titles = [lane.title for found in report.migrations for lane in timeline_of(found).lanes]
    assert {shown for shown, _ in labels} >= set(titles)
    assert [shown for shown, x in labels if 7 * len(shown) > x] == []


@pytest.mark.parametrize("name", ["libvirt", "dirty-ring", "dest-killed-blackout"])
def test_the_facts_and_checkpoints_are_those_of_the_text(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = " ".join(Page(page(name, tmp_path)).text.split())
    assert main(["report", str(RECORDINGS / f"{name}.vft.gz")]) == 0
    _, facts, *parts = capsys.readouterr().out.split("\n\n")
    lines = facts.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("outcome"))
    assert " ".join("\n".join(lines[first:]).split()) in shown
    blackout = next(part for part in parts if part.startswith("Blackout"))
    for line in blackout.splitlines()[2:]:
        checkpoint, *_ = line.split()
        assert f" {checkpoint} " in shown


def test_the_stop_is_drawn_to_scale(tmp_path: Path) -> None:
    text = page("libvirt", tmp_path)
    (m,) = boot_of(*golden("libvirt")).snapshot.migrations
    drawing = ET.fromstring(re.findall(r"<svg.*?</svg>", text, re.DOTALL)[1])
    widths = {
        title.split(":")[0]: float(rect.attrib["width"])
        for g in drawing.iter("g")
        if (title := (g.findtext("title") or "")) and (rect := g.find("rect")) is not None
    }
    stopped, ran = m.stopped_at_ns, m.downtime.vcpu_ns
    assert stopped is not None
    assert ran is not None
    precopy = next(p for p in m.phases if p.name == "precopy")
    assert precopy.end_at_ns is not None
    expected = ran / (precopy.end_at_ns - precopy.start_at_ns)
    assert widths["stopped"] / widths["precopy"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("evil", ['<script>alert("x")</script>', "\ud800<b>", "[/x]"])
def test_names_of_guests_are_text(evil: str) -> None:
    host, records = golden("libvirt")
    found = boot_of(replace(host, name=evil), records)
    (m,) = found.snapshot.migrations
    m = replace(m, name=evil, channel=replace(m.channel, error=evil))
    report = Report.of_hosts([replace(found, snapshot=replace(found.snapshot, migrations=(m,)))])
    report = replace(report, damage=(evil,))
    text = render_html(report).encode().decode()
    assert "<script" not in text
    assert "<b></b>" not in text
    assert Page(text).text.count(evil.replace("\ud800", "?")) >= 4


def test_a_page_without_a_migration(tmp_path: Path) -> None:
    assert "No migration" in Page(page("boot", tmp_path)).text


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("r.html", b"<!DOCTYPE html>"),
        ("r.HTML", b"<!DOCTYPE html>"),
        ("r.json", b'{\n  "schema"'),
        ("r.perfetto-trace", b"\x0a"),
        ("r.txt", b"downtime "),
        ("html", b"downtime "),
    ],
)
def test_the_name_of_the_file_says_the_format(name: str, begins: bytes, tmp_path: Path) -> None:
    out = tmp_path / name
    recording = str(RECORDINGS / "completed-fast.vft.gz")
    assert main(["report", recording, "-o", str(out)]) == 0
    assert out.read_bytes().startswith(begins)
    assert main(["report", recording, "-o", str(out), "--format", "text"]) == 0
    assert out.read_bytes().startswith(b"downtime ")


def test_a_name_that_names_no_format_is_text_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = str(RECORDINGS / "completed-fast.vft.gz")
    out = tmp_path / "r.pdf"
    assert main(["report", recording, "-o", str(out)]) == 0
    note = capsys.readouterr().err
    assert f"{out} is written as text: .pdf is none of .html, .json, .perfetto-trace" in note
    assert len(note.splitlines()) == 1
    for quiet in (["r.pdf", "--format", "json"], ["r.txt"], ["r"], ["r.png", "--heatmap"]):
        assert main(["report", recording, "-o", str(tmp_path / quiet[0]), *quiet[1:]]) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["r.vft", "r.vft.gz"])
def test_a_report_does_not_replace_a_recording(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    out.write_bytes(b"kept")
    assert main(["report", str(RECORDINGS / "completed-fast.vft.gz"), "-o", str(out)]) == 2
    assert "is the name of a recording" in capsys.readouterr().err
    assert out.read_bytes() == b"kept"


def test_the_text_in_a_file_is_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.txt"
    recording = str(RECORDINGS / "completed-fast.vft.gz")
    assert main(["report", "-o", str(out), recording]) == 0
    assert main(["report", recording]) == 0
    # As wide as each is: the same words.
    assert out.read_text().split()[:12] == capsys.readouterr().out.split()[:12]
    assert "completed" in out.read_text()
