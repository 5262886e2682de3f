# SPDX-License-Identifier: MIT
"""The needs of tests, and what happens if the machine does not meet them.

`@pytest.mark.needs("bpf", "qemu", "strace")` skips the test, with the reason, if one of them is
missing. With VFTRACE_REQUIRE_ALL=1 (CI) the test fails instead, so that no test is skipped silently.
Tests below tests/host and tests/libvirt are marked `host`, which needs bpf, kvm and qemu;
tests/libvirt needs libvirt's programs too; those below tests/lab are marked `lab`. Tests that measure
time, or trace all of this machine, are marked `alone`: these three, tests/dashboards, and tests with the
mark. A test that finds out while it runs that something is missing uses the fixture `missing`.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

# The time of an example depends more on the machine's other work than on the code.
hypothesis.settings.register_profile("vftrace", deadline=None)
hypothesis.settings.load_profile("vftrace")

REQUIRE_ALL_VARIABLE = "VFTRACE_REQUIRE_ALL"

QEMU = "qemu-system-x86_64"

LIBVIRT_PROGRAMS = ("libvirtd", "virsh", "qemu-img", "ip", "ss", "unshare", "nsenter")

# include/uapi/linux/capability.h; beside CAP_BPF, and before there was one, enough for bpf(2).
CAP_SYS_ADMIN = 21


def _lacks_root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _lacks_bpf() -> str | None:
    if importlib.util.find_spec("bcc") is None:
        return "no bcc (apt-get install python3-bpfcc)"
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    if not int(effective, 16) >> CAP_SYS_ADMIN & 1:
        return "no CAP_SYS_ADMIN for BPF (run as root)"
    return None


def _lacks_kvm() -> str | None:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return None


def _lacks_program(name: str) -> str | None:
    return None if shutil.which(name) else f"no {name} on PATH"


CHECKS: dict[str, Callable[[], str | None]] = {
    "root": _lacks_root,
    "bpf": _lacks_bpf,
    "kvm": _lacks_kvm,
    "qemu": lambda: _lacks_program(QEMU),
}


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test with what this machine lacks; fail it if everything is required."""
    if os.environ.get(REQUIRE_ALL_VARIABLE) == "1":
        pytest.fail(f"{reason} ({REQUIRE_ALL_VARIABLE}=1 allows no skip)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def missing() -> Callable[[str], NoReturn]:
    """Return the function `missing("reason")`, which ends a test that found out what this machine lacks."""
    return skip_or_fail


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the directory they live in."""
    tests = Path(__file__).parent
    for item in items:
        directory = item.path.relative_to(tests).parts[0]
        if directory in ("host", "lab", "libvirt", "dashboards"):
            item.add_marker(pytest.mark.alone)
        if directory in ("host", "libvirt"):
            item.add_marker(pytest.mark.host)
            item.add_marker(pytest.mark.needs("bpf", "kvm", "qemu"))
            if directory == "libvirt":
                item.add_marker(pytest.mark.needs("root", *LIBVIRT_PROGRAMS))
            # They compare clocks of processes that share two busy CPUs: a test fails if it fails three times.
            item.add_marker(pytest.mark.flaky(reruns=2))
            continue
        if directory == "lab":
            item.add_marker(pytest.mark.lab)
            # An emulated machine boots and runs its jobs.
            item.add_marker(pytest.mark.timeout(1800))
        # One hang in many runs, which nobody has seen twice: it must not take the other results with it.
        item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["Timeout"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why each test that was run again had failed."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.write_sep("_", f"run again: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check what the test needs before its fixtures are made."""
    names = {name for marker in item.iter_markers("needs") for name in marker.args}
    lacks = [CHECKS[name]() if name in CHECKS else _lacks_program(name) for name in sorted(names)]
    reasons = [reason for reason in lacks if reason is not None]
    if reasons:
        skip_or_fail("; ".join(reasons))
