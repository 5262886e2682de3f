# SPDX-License-Identifier: MIT
"""Pictures of `top` as text, and what must hold for every picture."""

import io

import pytest
from msgspec import structs
from rich.cells import cell_len
from rich.console import Console

from tests.unit.golden_text import RECORDINGS, check
from tests.unit.screens import Moment, at, keys, screen
from vftrace.model.host import ProbeStatus
from vftrace.outputs.top.state import ViewState
from vftrace.outputs.top.view import Frame, Once

SCENARIOS = sorted(path.name.removesuffix(".vft.gz") for path in RECORDINGS.glob("*.vft.gz"))
SMALL, LARGE = (80, 24), (160, 50)
SIZES = (SMALL, LARGE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("what", "name", "seconds", "pressed"),
    [
        ("empty", "boot", 0.0, ()),
        ("precopy", "libvirt", 2.5, ()),
        ("blackout", "libvirt", 3.4, ()),
        ("blackout-timeline", "libvirt", 3.4, ("Enter",)),
        ("waiting-for-the-last-sync", "pause-before-switchover", 3.9, ("Enter",)),
        ("four-migrate", "four-at-once", 2.0, ("o", "Down")),
        ("finished", "there-and-back", 60.0, ("Down",)),
        ("finished-timeline", "postcopy", 60.0, ("Enter", "PageDown")),
        ("failed", "dest-killed-blackout", 60.0, ()),
        ("help", "boot", 0.0, ("?",)),
    ],
)
def test_the_picture_of(
    what: str, name: str, seconds: float, pressed: tuple[str, ...], size: tuple[int, int]
) -> None:
    moment = at(name, seconds)
    check(f"top-{what}-{size[0]}x{size[1]}", screen(moment, keys(moment, *pressed), size))


def test_a_migration_that_cannot_be_drawn_leaves_the_others() -> None:
    moment = at("four-at-once", 60.0)
    broken, *others = moment.snapshot.migrations
    damaged = structs.replace(broken, channel=None)
    snapshot = structs.replace(moment.snapshot, migrations=(damaged, *others))
    moment = Moment(moment.host, snapshot, moment.now_ns)
    picture = screen(moment, ViewState(), LARGE)
    assert "AttributeError" in picture
    for m in others:
        assert str(m.name) in picture
    row = ("migration", broken.pid, broken.started_at_ns)
    opened = screen(moment, ViewState(screen="timeline", opened=row), LARGE)
    assert "not shown, because of an error in vftrace" in opened


def test_emulating_processes_are_named_where_there_is_no_vm() -> None:
    moment = at("boot", 0.0)
    for count, said in (
        (1, "1 QEMU process runs without KVM"),
        (3, "3 QEMU processes run without KVM"),
    ):
        picture = screen(moment, structs.replace(ViewState(), without_kvm=count), SMALL)
        assert "No KVM VM runs on this host" in picture
        assert said in picture


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, SMALL) for name in SCENARIOS),
        *(("postcopy", size) for size in (LARGE, (40, 10), (20, 5), (120, 200))),
        *(("four-at-once", size) for size in (LARGE, (40, 10), (20, 5), (120, 200))),
    ],
)
def test_a_picture_fills_the_screen_and_no_more(name: str, size: tuple[int, int]) -> None:
    for seconds in (2.0, 60.0):
        moment = at(name, seconds)
        for pressed in ((), ("Enter",), ("?",), ("/", "x")):
            lines = screen(moment, keys(moment, *pressed), size).split("\n")
            assert len(lines) == size[1]
            assert {cell_len(line) for line in lines} == {size[0]}


@pytest.mark.parametrize("name", ["libvirt", "four-at-once", "postcopy", "boot"])
@pytest.mark.parametrize("size", SIZES)
def test_ascii_is_ascii(name: str, size: tuple[int, int]) -> None:
    for seconds in (2.0, 60.0):
        moment = at(name, seconds)
        for pressed in ((), ("Enter",), ("?",)):
            assert screen(moment, keys(moment, *pressed), size, ascii=True).isascii()


def test_without_colour_the_same_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    moment = at("dest-killed-blackout", 60)
    out = io.StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True, highlight=False)
    console.print(Frame(moment.host, moment.snapshot, moment.now_ns, ViewState()))
    assert "\x1b[31m" not in out.getvalue()
    assert "\x1b[1;31m" not in out.getvalue()
    assert "failed" in out.getvalue()


def test_the_blackout_so_far_is_never_more_than_it_becomes() -> None:
    final = at("libvirt", 60).snapshot.migrations[0]
    assert final.downtime.vcpu_ns is not None
    shown = []
    for tenths in range(60):
        moment = at("libvirt", tenths / 10)
        line = next(
            (one for one in screen(moment, size=LARGE).splitlines() if "so far, " in one), None
        )
        if line is not None:
            shown.append(float(line.split("downtime ")[1].split(" ms")[0]))
    assert shown
    assert shown == sorted(shown)
    assert max(shown) <= final.downtime.vcpu_ns / 1e6 + 0.5


def test_losses_and_probes_that_are_missing_are_in_the_header() -> None:
    moment = at("libvirt", 2.5)
    host = structs.replace(
        moment.host,
        probes=(ProbeStatus("ioctl", "kprobe"), ProbeStatus("vfio", None, "no such function")),
    )
    snapshot = structs.replace(
        moment.snapshot,
        lost=12,
        migrations=tuple(structs.replace(m, incomplete=True) for m in moment.snapshot.migrations),
    )
    text = screen(Moment(host, snapshot, moment.now_ns))
    assert "kprobe: ioctl; not attached: vfio" in text
    assert "12 lost" in text
    assert "! 12 EVENTS LOST" in text
    assert "!demo-libvirt" in text


def test_the_cursor_stays_in_sight() -> None:
    moment = at("four-at-once", 2.0)
    vms = tuple(
        structs.replace(moment.snapshot.vms[0], pid=1000 + i, name=f"vm-{i}") for i in range(300)
    )
    many = Moment(moment.host, structs.replace(moment.snapshot, vms=vms), moment.now_ns)
    for pressed in (("End",), ("End", "PageUp"), ("PageDown",) * 12):
        state = keys(many, *pressed)
        text = screen(many, state)
        assert sum(line.startswith("▶") for line in text.splitlines()) == 1


def test_a_filter_that_fits_nothing_is_reported() -> None:
    moment = at("libvirt", 2.5)
    text = screen(moment, keys(moment, "/", "z", "z", "Enter"))
    assert "Nothing matches 'zz'" in text
    assert "Esc" in text


def test_once_has_every_line_and_no_cursor() -> None:
    moment = at("four-at-once", 2.0)
    out = io.StringIO()
    frame = Frame(moment.host, moment.snapshot, moment.now_ns, ViewState())
    Console(file=out, width=80, color_system=None, highlight=False).print(Once(frame))
    for vm in moment.snapshot.vms:
        assert str(vm.pid) in out.getvalue()
    assert "▶" not in out.getvalue()
