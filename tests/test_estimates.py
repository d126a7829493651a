"""Estimated hours and sizes: worked numbers on made-up rates, and limits."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from talas_lib import bench, params
from talas_lib.graph import estimates
from talas_lib.graph.estimates import Rates
from talas_lib.methods.base import Needs

SMALL, LARGE = estimates.SIZES["minilm-l3"][0], estimates.SIZES["bert-base"][0]


def rates() -> Rates:
    """TALAS takes 100 ms on the small student, 900 on the large one; ASAM doubles or trebles that; bf16 halves."""
    times = [
        ("talas", "minilm-l3", 100.0),
        ("talas + asam", "minilm-l3", 200.0),
        ("talas", "bert-base-shape", 900.0),
        ("talas + asam", "bert-base-shape", 2700.0),
        ("simcse", "minilm-l3", 80.0),
        ("simcse", "bert-base-shape", 700.0),
        ("rkd", "minilm-l3", 50.0),
    ]
    methods = pd.DataFrame(times, columns=["variant", "student", "median"]).assign(metric="time")
    steps = pd.DataFrame(
        [
            ("step-adamw", "fp32", "time", 100.0),
            ("step-adamw", "bf16", "time", 50.0),
            ("step-asam", "fp32", "time", 200.0),
            ("step-asam", "bf16", "time", 50.0),
            ("step-adamw", "one view", "time, share of fp32", 0.6),
            ("step-asam", "one view", "time, share of fp32", 0.5),
        ],
        columns=["bench", "variant", "metric", "median"],
    )
    encode = pd.DataFrame([("fp32", "throughput", 100.0), ("bf16", "throughput", 200.0)]).set_axis(
        ["variant", "metric", "median"], axis=1
    )
    tasks = [("a", 100.0, 2.0, 1.0), ("b", 300.0, 4.0, 3.0), ("c", 500.0, 6.0, 5.0)]
    evaluation = pd.DataFrame(
        [
            (variant, metric, task, value / (2 if (variant, metric) == ("bf16", "encoding") else 1))
            for variant in ("fp32", "bf16")
            for task, *values in tasks
            for metric, value in zip(("texts", "encoding", "scoring"), values, strict=True)
        ],
        columns=["variant", "metric", "task", "median"],
    )
    paper = [("simcse", 192.0), ("talas", 200.0), ("talas + asam", 400.0)]
    return Rates(methods, steps, encode, evaluation, pd.DataFrame(paper, columns=["variant", "time_ms"]))


def resolved(**values: Any) -> params.ResolvedParams:
    base = {"teacher": "mpnet-base", "student": "minilm-l3", "corpus": "mini", "optimizer": "adamw"}
    return params.resolve("03_train", base | values)


def suite(*tasks: str) -> Any:
    spec = {"kind": "similarity", "metric": "spearman", "builder": "b", "source": "s"}
    return params.TaskSuiteSpec(name="x", protocol="p", tasks=[params.TaskSpec(name=task, **spec) for task in tasks])


@pytest.mark.parametrize(
    ("values", "ms"),
    [
        ({}, 100),
        ({"optimizer": "asam"}, 200),
        ({"optimizer": "sam"}, 200),
        ({"batch_size": 16}, 50),
        ({"precision": "bf16"}, 50),
        ({"precision": "bf16", "optimizer": "asam"}, 50),
        ({"method_params": {"weight_simcse": 0.0}}, 60),
        ({"student": "bert-base"}, 900),
        ({"student": "bert-base", "optimizer": "asam"}, 2700),
        ({"method": "simcse"}, 80),
        ({"method": "rkd"}, 50),
        ({"method": "rkd", "student": "bert-base"}, 450),  # grows as TALAS does
    ],
)
def test_the_step_of_a_measured_student(values: dict[str, Any], ms: float) -> None:
    assert rates().step_ms(resolved(**values), "cpu") == pytest.approx(ms)


def test_a_step_lies_between_those_of_a_smaller_and_a_larger_student() -> None:
    size = estimates.SIZES["minilm-l6-h768"][0]
    between = rates().step_ms(resolved(student="minilm-l6-h768"), "cpu")
    assert between == pytest.approx(100 + 800 * (size - SMALL) / (LARGE - SMALL))
    assert 0 < rates().step_ms(resolved(student="tiny"), "cpu") < 100


def test_a_gpu_step_is_the_papers_in_proportion_to_the_student() -> None:
    assert rates().step_ms(resolved(student="bert-base"), "gpu") == pytest.approx(200)
    assert rates().step_ms(resolved(student="bert-base", optimizer="asam"), "gpu") == pytest.approx(400)
    assert rates().step_ms(resolved(student="bert-base", precision="bf16"), "gpu") == pytest.approx(
        200
    )  # the paper's fp16
    half = estimates.SIZES["minilm-l6-h768"][0] / LARGE
    assert rates().step_ms(resolved(student="minilm-l6-h768"), "gpu") == pytest.approx(200 * half)
    assert rates().step_ms(resolved(student="bert-base", method="rkd"), "gpu") == pytest.approx(
        100
    )  # as on the CPU: half


def test_the_steps_of_a_run() -> None:
    assert estimates.run_steps(resolved(epochs=5), 14_760) == 2_310  # the paper's
    assert estimates.run_steps(resolved(epochs=3), 4_920) == 462
    assert estimates.run_steps(resolved(epochs=3, method="jasper_stella"), 4_920) == 770  # two epochs of heads before
    assert estimates.run_steps(resolved(method="static"), 4_920) == 0
    assert rates().train_s(resolved(epochs=3), 4_920, "cpu") == pytest.approx(46.2)


def test_encoding_and_scoring() -> None:
    one = rates()
    assert one.encode_s(1000, "minilm-l6", "fp32", "cpu") == pytest.approx(10)
    assert one.encode_s(1000, "mpnet-base", "bf16", "cpu") == pytest.approx(5 * LARGE / estimates.SIZES["minilm-l6"][0])
    assert one.encode_s(1000, "bert-base", "fp32", "gpu") == pytest.approx(1.0)  # 192 ms: 32 sentences, six passes
    assert one.train_s(resolved(method="static"), 10, "cpu") == one.encode_s(30_522, "mpnet-base", "fp32", "cpu")
    assert one.suite_s(suite("a", "b"), "minilm-l3", "fp32", "cpu") == pytest.approx(2 + 1 + 4 + 3)
    assert one.suite_s(suite("a", "b"), "minilm-l3", "bf16", "cpu") == pytest.approx(1 + 1 + 2 + 3)
    assert one.suite_s(suite("a"), "minilm-l6", "fp32", "cpu") == pytest.approx(2 * 2 + 1)
    assert one.suite_s(suite("a"), "bert-base", "fp32", "gpu") == pytest.approx(0.1 + 2 * 1)
    assert one.suite_s(suite("unknown"), "minilm-l3", "fp32", "cpu") == pytest.approx(4 + 3)  # the median task


def test_the_size_of_caches() -> None:
    assert estimates.vectors_gb(1_000_000, [768, 384]) == pytest.approx(4.608)
    assert estimates.tokens_gb(1_000_000, 1024, Needs()) == 0
    read = Needs(teacher_tokens=(-1,), teacher_attention=(-1,))
    assert estimates.tokens_gb(1_000_000, 1024, read) == pytest.approx(18 * (1024 + 18) * 2 / 1000)


def test_every_model_with_a_file_has_a_size_or_counts_as_bert() -> None:
    assert estimates.size_of("tiny-xlmr") == estimates.size_of("tiny")
    assert estimates.size_of("somebody-elses") == estimates.size_of("bert-base") == (LARGE, 768)
    for kind in ("teachers", "students"):
        for name in set(params.available(kind)) & set(estimates.SIZES):
            dim = getattr(params.load_teacher(name), "dim", None) if kind == "teachers" else None
            assert dim in (None, estimates.SIZES[name][1])


def test_the_committed_tables_hold_what_is_read() -> None:
    ours = Rates(*(bench.table(name) for name in ("methods", "steps", "encode", "evaluation")), bench.paper_table3())
    for machine in ("cpu", "gpu"):
        one = ours.step_ms(resolved(precision="bf16", method_params={"weight_simcse": 0.0}), machine)
        two = ours.step_ms(resolved(precision="fp32", optimizer="asam"), machine)
        assert 0 < one < two
        assert ours.suite_s(params.load_tasks("paper"), "minilm-l3", "bf16", machine) > 10
    assert ours.step_ms(resolved(student="bert-base", optimizer="asam"), "gpu") == pytest.approx(375)
