"""What every benchmark states beside its numbers: the machine and the revision."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path

import torch


def git_revision() -> str:
    """Short hash of the checked-out commit, with `+` when there are changes; empty outside a checkout."""
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")


def cpu_name() -> str:
    """Model name, threads in use, and whether the CPU has AMX."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    name = next(
        (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown"
    )
    return f"{name}, {torch.get_num_threads()} threads" + (", AMX" if "amx_bf16" in text else "")


def matrix_peak(size: int = 1536, repeats: int = 20) -> dict[str, list[float]]:
    """GFLOP/s of square matrix products by precision: the roof that a share of peak refers to."""
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
        values = []
        for number in range(repeats + 3):
            began = time.perf_counter()
            a @ b
            if number >= 3:
                values.append(2 * size**3 / (time.perf_counter() - began) / 1e9)
        found[name] = values
    return found


def row(bench: str, variant: str, metric: str, unit: str, values: list[float]) -> dict[str, object]:
    """One tidy row of a result: median, min and max of the values."""
    return {
        "bench": bench,
        "variant": variant,
        "metric": metric,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }
