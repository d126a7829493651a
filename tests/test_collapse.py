"""The alarm rings for degenerate vectors, not for ones that merely began narrow, and names what fits the circumstances."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from talas_lib import collapse, params, stages
from talas_lib.collapse import Circumstances, CollapseWarning, Watch, check, check_vectors, geometry


def row(cosine, rank, step=1):
    return {"step": step, "mean_cosine": cosine, "effective_rank": rank}


HEALTHY = row(0.6, 24.0)
BERT = row(0.9, 17.0)  # first-token vectors of an untrained BERT
REDUCED = row(0.997, 3.4)  # those of a network that lost half of its blocks


def vectors(common, rows=64, dim=16):
    """Random vectors with a common direction of this size beside them."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(rows, dim)) + common * rng.normal(size=dim)).astype(np.float32)


# ---- what is degenerate


@pytest.mark.parametrize("start", [HEALTHY, BERT, REDUCED, None], ids=["healthy", "bert", "reduced", "unknown"])
def test_no_start_alarms_by_itself(start):
    if start is not None:
        assert check(start, start=start) is None
    assert check(HEALTHY, start=start, done=1.0) is None


@pytest.mark.parametrize(
    ("start", "now", "done", "expected"),
    [
        (HEALTHY, row(0.96, 12), 0.1, "collapsed towards one direction"),
        (HEALTHY, row(0.94, 14), 0.1, None),  # narrow, not degenerate
        (BERT, row(0.96, 12), 0.1, None),  # hardly narrower than it began
        (BERT, row(0.975, 9), 0.1, "collapsed towards one direction"),
        (REDUCED, row(0.997, 3.4), 0.3, None),  # it may still leave
        (REDUCED, row(0.997, 3.4), 0.5, "before training and still do"),
        (REDUCED, row(0.97, 9), 1.0, None),  # it has left
        (REDUCED, row(0.9995, 2.0), 0.1, "collapsed towards one direction"),
        (HEALTHY, row(0.02, 1.6), 0.1, "collapsed into few directions"),  # plus and minus one direction
        (HEALTHY, row(0.3, 6.0), 0.1, None),
        (row(0.2, 200.0), row(0.2, 20.0), 0.1, "collapsed into few directions"),  # of 512 texts
        (row(0.2, 200.0), row(0.2, 60.0), 0.1, None),
        (row(0.4, 1.9), row(0.4, 1.2), 0.1, None),  # two sentences have no more directions
        (None, row(0.995, 5), 0.0, "point in nearly one direction"),
        (None, row(0.97, 5), 0.0, None),
        (HEALTHY, row(float("nan"), 5), 0.1, "not finite"),
    ],
)
def test_degenerate_is_relative_to_the_start(start, now, done, expected):
    found = check(now, start=start, done=done)
    assert found is None if expected is None else expected in found


def test_the_message_has_the_numbers():
    assert check(row(0.98, 8.0), start=HEALTHY) == (
        "the student's vectors have collapsed towards one direction: mean cosine of different sentences 0.980 (0.600 before "
        "training), effective rank 8.0 (24.0); the likely cause is that what pulls vectors together outweighs what keeps them "
        "apart: lower lr, train for fewer epochs, or give a contrastive term more weight"
    )


# ---- causes


@pytest.mark.parametrize(
    ("circumstances", "cause", "remedy"),
    [
        (Circumstances(lr=1e-3, terms=("tamd",), teacher=True), "learning rate 0.001 is high", "lower lr"),
        (
            Circumstances(lr=2e-5, terms=("lasd",), teacher=False),
            "no term of the loss keeps",
            "contrastive term or a teacher",
        ),
        (Circumstances(lr=2e-5, terms=("simcse",), teacher=False, dropout=0.0), "dropout is 0", "usually 0.1"),
        (Circumstances(terms=("simcse",), teacher=False, temperature=1.0), "temperature 1 is high", "0.05 and 0.1"),
        (Circumstances(terms=("simcse",), teacher=True, temperature=1e-3), "temperature 0.001 is low", "0.05 and 0.1"),
        (Circumstances(lr=2e-5, terms=("mse",), teacher=True), "squared error", "cosine"),
        (Circumstances(terms=("tamd", "lasd"), teacher=True), "LASD", "its weight"),
        (Circumstances(terms=("simcse",), teacher=False, temperature=0.05, dropout=0.1), "outweighs", "fewer epochs"),
        (Circumstances(), "outweighs", "lower lr"),
    ],
)
def test_the_likely_cause(circumstances, cause, remedy):
    found = circumstances.cause_and_remedy()
    assert cause in found[0]
    assert remedy in found[1]


def test_circumstances_of_an_experiment():
    p = params.resolve(
        "03_train", {"student": "tiny", "teacher": "tiny", "corpus": "tiny", "method": "simcse", "lr": 1e-5}
    )
    found = Circumstances.of(p, {"simcse": 1.0})
    assert (found.lr, found.teacher, found.repels) == (1e-5, False, True)
    assert found.temperature == p.method_config.temperature
    p = params.resolve("03_train", {"student": "tiny", "teacher": "tiny", "corpus": "tiny", "method": "talas"})
    assert Circumstances.of(p, ("tamd", "lasd")).teacher is True
    assert not Circumstances.of(p, ("tamd", "lasd")).repels


# ---- vectors


def test_geometry_of_known_vectors():
    found = geometry(np.eye(4, dtype=np.float32))
    assert found == {"mean_cosine": pytest.approx(0, abs=1e-6), "effective_rank": pytest.approx(4, abs=1e-4), "rows": 4}
    found = geometry(np.ones((4, 3), np.float32))
    assert found["mean_cosine"] == pytest.approx(1, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert geometry(np.ones((1, 3), np.float32))["mean_cosine"] == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_geometry_does_not_depend_on_the_scale(scale):
    expected = geometry(vectors(2.0))
    assert geometry((vectors(2.0) * np.float64(scale)).astype(np.float32)) == pytest.approx(expected, rel=1e-4)


def test_check_vectors_of_a_finished_student():
    start = geometry(vectors(1.0))
    assert check_vectors(vectors(1.0), start=start) is None
    assert "towards one direction" in check_vectors(vectors(30.0), start=start)
    line = vectors(0.0)[:, :1] * vectors(0.0)[:1]  # all on one line through the origin, both ways
    assert "few directions" in check_vectors(line, start=start)
    assert "nearly one direction" in check_vectors(vectors(30.0))
    assert "learning rate" in check_vectors(vectors(30.0), circumstances=Circumstances(lr=1e-2))


# ---- watching a run


def test_one_odd_batch_is_no_collapse():
    watch = Watch(100)
    for step, cosine in enumerate((0.6, 0.97, 0.6, 0.97, 0.6), start=1):
        watch.see(row(cosine, 20, step))
    assert watch.message is None


def test_a_collapse_is_told_once():
    watch = Watch(100, Circumstances(lr=0.01))
    watch.see(HEALTHY)
    watch.see(row(0.98, 5, 11))
    with pytest.warns(
        CollapseWarning, match=r"at step 21 .* collapsed .* \(0\.600 before training\).*learning rate 0\.01"
    ):
        watch.see(row(0.99, 4, 21))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.see(row(0.99, 4, 31))
    assert watch.message.startswith("at step 21 ")
    watch.see(row(0.6, 24, 41))
    assert watch.message.endswith("(it had passed by the end)")


def test_rows_of_an_earlier_session_are_seen_in_silence():
    watch = Watch(100)
    for step, cosine in enumerate((0.6, 0.99, 0.99), start=1):
        watch.see(row(cosine, 20, step), warn=False)
    assert watch.message.startswith("at step 3 ")


def test_rows_without_geometry_are_passed_over():
    watch = Watch(100)
    watch.see({"step": 1, "loss": 3.0})
    watch.see({"step": 2, "mean_cosine": None, "effective_rank": None})  # how a record holds what is not finite
    watch.see(HEALTHY)
    assert watch.message is None


# ---- in a training run

RUN = {
    "student": "tiny",
    "teacher": "tiny",
    "corpus": "tiny",
    "max_sentences": 64,
    "epochs": 4,
    "batch_size": 8,
    "device": "cpu",
    "optimizer": "adamw",
}


def test_a_run_that_collapses_warns_and_records_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    p = params.resolve("03_train", RUN | {"lr": 0.03, "pooling": "mean"})
    with pytest.warns(CollapseWarning, match=r"learning rate 0\.03 is high"):
        run = stages.train_run(p)
    rows = run.read_metrics()
    assert 1 - rows[-1]["mean_cosine"] < collapse.SHRUNK * (1 - rows[0]["mean_cosine"])
    assert "collapsed towards one direction" in run.read_record("train")["collapse"]


def test_a_sound_run_records_that_nothing_was_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    run = stages.train_run(params.resolve("03_train", RUN | {"lr": 1e-4, "epochs": 1}))
    assert run.read_record("train")["collapse"] is None
