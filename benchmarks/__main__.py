"""All benchmarks, one after the other and with nothing else running: `make bench`, about 15 minutes.

    python -m benchmarks [--only steps phases ...] [--pause 2] [--out results/bench]

Each runs in a process of its own, after a pause in which the machine comes to rest. With TALAS_DATA the paper's corpus and
tasks are used, else the packaged ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import OUT
from talas_lib import bench, paths, plots
from talas_lib.bench_figures import FIGURES

FLAT = ("--flat", "10000", "100000", "1000000")
# table it writes: module and arguments, few enough repeats for the whole to stay below 15 minutes
RUNS: dict[str, tuple[str, ...]] = {
    "steps": ("steps",),
    "phases": ("phases",),
    "methods": ("methods", "--steps", "4"),
    "encode": ("encode",),
    "flat": ("encode", *FLAT),
    "eigen": ("eigen", "--repeats", "2"),
    "ascent": ("ascent", "--batches", "10", "--train", "60"),
    "evaluation": ("evaluation",),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--pause", type=float, default=2.0, help="seconds before each")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    began = time.perf_counter()
    for name in chosen.only:
        time.sleep(chosen.pause)
        module, *arguments = RUNS[name]
        print(f"== {name}: python -m benchmarks.{' '.join((module, *arguments))}", flush=True)
        start = time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--out", str(chosen.out.resolve())]
        if subprocess.run(command, cwd=paths.root(), check=False).returncode:
            sys.exit(f"{name} failed: see above. The tables of those before it are written")
        print(f"== {name} took {time.perf_counter() - start:.0f} s", flush=True)
    for name in {"ascent", "eigen"} & set(chosen.only):
        plots.save(FIGURES[name](bench.read(chosen.out / f"{name}.csv")), chosen.out / f"{name}.png")
    print(f"== all took {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
