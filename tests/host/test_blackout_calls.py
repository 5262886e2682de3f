# SPDX-License-Identifier: MIT
"""Plays blackouts with an injected cause: the report names the cause, with the independently measured length."""

from pathlib import Path

import pytest

from tests.host.blackouts import BLACKOUTS, judge, migration_of, play

TIMED = [name for name in BLACKOUTS if not name.startswith("many")]


@pytest.mark.alone
@pytest.mark.parametrize("name", BLACKOUTS)
def test_the_cause_is_found(name: str, tmp_path: Path) -> None:
    target = tmp_path / "r.vft.gz"
    truth = play(name, target)
    judged = judge(migration_of(target, name), truth)
    assert judged.named >= 0.95
    if name in TIMED:
        assert truth.fits(judged.first), judged
        assert judged.error == pytest.approx(0, abs=0.05), judged
    else:
        assert judged.error == 0, judged
        assert judged.as_clocked(truth), judged
