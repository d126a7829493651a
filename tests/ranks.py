"""What two processes compute together beside what one computes alone: for test_distributed.py.

    python tests/ranks.py FOLDER TASK TASK ...

prints the findings of each task as JSON. Processes are forked, so that torch is imported once; they meet through
`distribution.join`, as those of `accelerate launch` do.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talas_lib import distribution, teacher_cache, tiny, token_cache
from talas_lib.distribution import Ranks
from talas_lib.methods.base import Needs, Objective
from talas_lib.schedule import Settings
from talas_lib.sharpness_aware import Approximation, Perturbation
from talas_lib.stepper import Stepper
from talas_lib.tiny_texts import tiny_sentences
from talas_lib.train import train

ASAM = Perturbation("asam", 0.5)
WAYS = {
    "adamw": {},
    "asam": {"perturbation": ASAM},
    "sam, heads left out": {"perturbation": Perturbation("sam", 0.05), "perturb_heads": False},
    "disam": {"perturbation": Perturbation("sam", 0.05, variance_weight=1.0)},
    "asam from a part": {"perturbation": ASAM, "ascent": Approximation(stride=2, one_view=True, every=2)},
}


def together(folder: Path, work: Callable[[], Any], count: int = 2, *, join: bool = True) -> list[Any]:
    """What each of `count` processes returns (JSON). join: they have met already when the work begins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            os.environ |= {k: str(v) for k, v in given.items()}
            os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "GLOO_SOCKET_IFNAME": "lo"}
            try:
                if join:
                    distribution.join("cpu")
                result = work()
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
                (folder / f"rank-{number}.json").write_text(json.dumps(result))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * count, codes
    return [json.loads((folder / f"rank-{number}.json").read_text()) for number in range(count)]


# ---- methods, from the benches of test_methods_all.py


def bench(folder: Path) -> Any:
    import test_methods_all as every

    texts = [sentence.text for sentence in tiny_sentences(300, seed=0)]
    student, equal = tiny.build("bert", folder / "bert", texts), tiny.build("xlm-r", folder / "xlm-r", texts)
    wide = tiny.build("qwen3", folder / "wide", texts, dim=48)
    return every.Bench(folder / "caches", student, wide, equal, [*texts[: every.SENTENCES], " ".join(texts[:6])])


def without_dropout(case: Any) -> Any:
    case.train()
    for module in case.student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    case.student.model.apply(_no_dropout)
    case.method.heads.eval()  # what a method draws, it draws in training
    return case


def _no_dropout(module: torch.nn.Module) -> None:
    for name in ("p", "dropout", "attention_dropout", "dropout_prob"):
        if isinstance(getattr(module, name, None), float):
            setattr(module, name, 0.0)


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """||found - expected|| over ||expected||, all tensors as one vector; 0 for equal ones, also where all is zero (in-batch terms
    of one sentence), infinite where the names differ."""
    if found.keys() != expected.keys():
        return float("inf")
    dense = [(a.to_dense() if a.is_sparse else a, b.to_dense() if b.is_sparse else b)
             for a, b in ((found[k], expected[k]) for k in expected)]  # fmt: skip
    apart = torch.stack([(a - b).norm() for a, b in dense]).norm()
    return 0.0 if apart == 0 else float(apart / torch.stack([b.norm() for _, b in dense]).norm())


def stepper(case: Any, ranks: Ranks | None, **ways: Any) -> Stepper:
    case.objective.ranks = ranks
    optimizer = torch.optim.AdamW(case.objective.parameter_groups(1e-3, 0.01), fused=True)
    return Stepper(case.objective, optimizer, Settings(**ways))


def gradients(folder: Path) -> Any:
    """Relative distance of the gradient by method and number of sentences."""
    import test_methods_all as every

    here = bench(folder)

    def work() -> dict[str, float]:
        ranks, found = distribution.current(), {}
        assert ranks is not None
        for name in every.TRAINED:
            for rows in ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 7, 11], [5, 5, 5, 9], [4]):
                case = without_dropout(here.case(name, dtype=torch.float64))
                alone = stepper(case, None)
                alone._backward(case.batch(*rows))
                expected = {k: g.clone() for k, g in case.gradients().items()}
                shared = stepper(case, ranks)
                shared._backward(case.batch(*rows))
                found[f"{name} {len(rows)}"] = distance(case.gradients(), expected)
        return found

    return together(folder, work)


def steps(folder: Path) -> Any:
    """Relative distance of the weights after three steps, by optimizer, and of the logged numbers of the last."""
    here = bench(folder)

    def work() -> dict[str, Any]:
        ranks, found = distribution.current(), {}
        for how, ways in WAYS.items():
            ends, rows = [], []
            for joined in (None, ranks):
                case = without_dropout(here.case("talas", dtype=torch.float64))
                walker = stepper(case, joined, **ways)
                for start in (0, 8, 16):
                    report = walker.step(case.batch(*range(start, start + 7)), 1.0, probe=True)
                ends.append(case.state())
                rows.append(report.row())
            found[how] = {
                "weights": distance(ends[1], ends[0]),
                "row": max(abs(rows[1][k] - v) / max(abs(v), 1e-12) for k, v in rows[0].items()),
                "sum": float(sum(v.double().sum() for v in ends[1].values())),
            }
        return found

    return together(folder, work)


# ---- training


class Stop(Exception):
    pass


def training(folder: Path) -> Any:
    """`train` with the compact vocabulary: two processes beside one without dropout; with dropout, killed and resumed; and how
    far apart the two processes' weights are."""
    here = bench(folder)
    settings = Settings(epochs=2, batch_size=5, lr=1e-3, min_lr=1e-4, perturbation=ASAM)

    def run(dropout: bool, checkpoint: Path | None = None, stop: int = 0) -> tuple[Any, Any, list[Any]]:
        case = here.case("talas", dtype=torch.float32 if dropout else torch.float64)
        if not dropout:
            without_dropout(case)
        rows: list[Any] = []

        def on_log(row: Any) -> None:
            rows.append(row)

        data = replace(case.data, teachers=case.data.teachers)
        objective = Objective(case.student, case.method, needs=case.objective.needs)
        every = {"checkpoint": checkpoint, "checkpoint_every": 4, "log_every": 1}
        if stop:
            plain = Stepper.step

            def step(self: Stepper, *args: Any, **kwargs: Any) -> Any:
                if self.steps == stop:
                    raise Stop
                return plain(self, *args, **kwargs)

            Stepper.step = step  # type: ignore[method-assign]
            try:
                train(objective, data, settings, on_log=on_log, **every)
            except Stop:
                pass
            finally:
                Stepper.step = plain  # type: ignore[method-assign]
            return None, None, rows
        result = train(objective, data, settings, on_log=on_log, **every)
        return case.state(), result, rows

    alone = run(False)[0]

    def work() -> dict[str, Any]:
        ranks = distribution.current()
        assert ranks is not None
        shared, result, rows = run(False)
        straight = run(True)[0]
        file = folder / "last.safetensors"
        run(True, file, stop=6)
        distribution.wait()
        there = file.is_file()
        resumed, again, _ = run(True, file)
        sums = ranks.exchange({k: v.double().sum().item() for k, v in resumed.items()})
        return {
            "distance": distance(shared, alone),
            "processes": result.processes,
            "rows": len(rows),
            "checkpoint": there,
            "resumed_from": again.resumed_from,
            "same bits": all(torch.equal(straight[k], resumed[k]) for k in straight),
            "same on both": sums[0] == sums[1],
        }

    return together(folder, work)


# ---- caches


def caches(folder: Path) -> Any:
    """Files of caches filled by two processes and by one, and what each process encoded."""
    from talas_lib.encoders import Encoder

    texts = [sentence.text for sentence in tiny_sentences(200, seed=0)]
    model = tiny.build("bert", folder / "bert", texts)
    needs = Needs(teacher_tokens=(-1, -2), teacher_attention=(-1,))

    def fill(root: Path) -> int:
        teacher, encoded = Encoder.load(model, pooling="mean"), 0

        def embed(some: Any) -> np.ndarray:
            nonlocal encoded
            encoded += len(some)
            return teacher.encode(some)

        cache = teacher_cache.build(root, {"weights": "w"}, texts, embed, shard_size=16)
        assert len(cache) == len(texts)
        tokens = token_cache.build(root, {"weights": "w"}, texts, needs, lambda: teacher, shard=10_000)
        assert len(tokens) == len(texts)
        teacher_cache.build(root, {"weights": "w"}, texts, embed, shard_size=16)  # it is there
        return encoded

    fill(folder / "alone")
    return together(folder, lambda: fill(folder / "together"))


def run(folder: Path) -> Any:
    """A whole run by `worker`, as a launch starts it: the cache, training while somebody else trains that run, training."""
    import fault_pipeline

    from talas_lib import params, run_lock, runs, worker

    os.environ["TALAS_OUTPUTS"] = str(folder / "outputs")
    names = params.notebook_schema("03_train").names
    given = {k: v for k, v in fault_pipeline.values(optimizer="asam").items() if k in names}

    arguments = ["-y", json.dumps(given)]

    def launched(notebook: str) -> Any:
        return together(folder, lambda: worker.main([notebook, *arguments]), join=False)

    cached = launched("02_cache_teacher")
    with run_lock.training(runs.open_run(params.resolve("03_train", given))):
        refused = launched("03_train")
    return [cached, refused, launched("03_train")]


TASKS = {"gradients": gradients, "steps": steps, "training": training, "caches": caches, "run": run}

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {}
    for task in sys.argv[2:]:
        (folder / task).mkdir(parents=True)
        found[task] = TASKS[task](folder / task)
    sys.stdout.write("\n" + json.dumps(found) + "\n")
