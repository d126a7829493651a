"""Long runs: memory that does not grow with the number of steps and reads."""

from __future__ import annotations

import pytest

from benchmarks import soak
from benchmarks.common import in_own_process


def rows(steps: int, reads: int, monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[dict[str, object]]:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    return soak.measure(steps, reads, in_own_process)


def test_growth_is_between_the_last_thirds():
    flat = [10.0] * 30 + [50.0] * 60
    assert soak.growth(flat) == 0
    assert soak.growth([float(i) for i in range(90)]) == 30


@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_steps_and_ten_thousand_reads(monkeypatch, tmp_path):
    found = rows(1000, 10_000, monkeypatch, tmp_path)
    grown = {str(r["variant"]): float(r["median"]) for r in found if str(r["metric"]).startswith("growth")}  # type: ignore[arg-type]
    assert len(grown) == 2
    assert all(megabytes < 4 for megabytes in grown.values()), grown
    assert sum(r["metric"] == "memory" for r in found) >= 180
    assert soak.figure(found).axes
