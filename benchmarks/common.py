"""What the benchmarks share: tidy rows, the machine and the revision they state, memory, and processes of their own."""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from talas_lib import params, paths, plots
from talas_lib.bench_figures import FIGURES

OUT = paths.root() / "results" / "bench"
_PRELOADED = ["torch", "transformers", "sklearn", "benchmarks.workload"]
T = TypeVar("T")


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


def row(
    bench: str, variant: str, metric: str, unit: str, values: Sequence[float], **columns: object
) -> dict[str, object]:
    """One tidy row of a result: median, min and max of the values, and further columns."""
    return {
        "bench": bench,
        "variant": variant,
        "metric": metric,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
        **columns,
    }


def default_corpus() -> str:
    """The paper's corpus where TALAS_DATA holds it, else the packaged one."""
    data, spec = paths.data_dir(), params.load_corpus_spec("talas15k")
    return "talas15k" if data is not None and (data / str(spec.path)).is_file() else "mini"


def save(rows: Iterable[Mapping[str, object]], name: str, out: Path, **columns: object) -> pd.DataFrame:
    """Write `<out>/<name>.csv`, every row with the revision and the CPU, and the figure that goes with it, if one does."""
    table = pd.DataFrame(rows).assign(**columns, git=git_revision(), cpu=cpu_name())
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / f"{name}.csv", index=False, float_format="%.7g")
    if name in FIGURES:
        plots.save(FIGURES[name](table), out / f"{name}.png")
    print(table.drop(columns=["git", "cpu", *columns]).to_string(index=False))
    return table


# ---- memory, as Linux tells it


def memory_mb(field: str) -> float:
    """VmRSS, resident now, or VmHWM, the most since `forget_peak`, of this process, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def forget_peak() -> None:
    """Let VmHWM begin anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


# ---- processes


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns in a new process, which has imported the libraries and nothing else."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
