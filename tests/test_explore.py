"""What notebook 08 shows: the functions behind it on a tiny run, and the widgets around them without a browser."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from small_run import small_run

from talas_lib import agreement, assess, params, sources, stages
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.explore import ascent, controls, views
from talas_lib.explore.drawings import Drawing
from talas_lib.sharpness_aware import Perturbation


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_texts):
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALAS_OUTPUTS", str(folder / "outputs"))
        trained = small_run(folder, [*tiny_texts[:120], tiny_texts[0].upper()])
        assess.evaluate_run(trained, params.load_tasks("tiny"))
        yield trained


@pytest.fixture(scope="module")
def view(run):
    return views.open_view(run, sentences=60)


# ---- the view


def test_a_view_holds_some_sentences_once_with_their_vectors(run, view):
    assert len(view.texts) == len(set(view.texts)) == 60
    corpus = stages.load_corpus(run.params)
    assert set(view.texts) <= set(corpus.texts)
    assert [corpus.sources[corpus.texts.index(t)] for t in view.texts] == list(view.sources)
    teacher = sources.load_teacher(run.params.teacher_spec)
    student = stages.load_run_student(run)
    expected = {"teacher": teacher, "trained student": student}
    for model, encoder in expected.items():
        assert view.vectors[model] == pytest.approx(encoder.encode(view.texts, normalize=True), abs=1e-5)
    assert tuple(view.vectors) == views.MODELS
    assert views.open_view(run, sentences=30).texts == view.texts[:30]


def test_a_sentence_of_the_view_needs_no_model(run, monkeypatch):
    fresh = views.open_view(run, sentences=20)
    monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("something was encoded"))
    assert fresh.encode("teacher", fresh.texts[3]) is not None
    assert ("encoder", "teacher") not in fresh.kept


def test_a_typed_sentence_is_encoded_once(view, monkeypatch):
    first = view.encode("trained student", "a boat on the sea")
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("it was encoded again"))
    assert view.encode("trained student", "a boat on the sea") is first
    with pytest.raises(TalasError, match=r"no model 'techer'.*teacher, untrained student"):
        view.encoder("techer")


# ---- neighbours


def test_neighbours_are_the_largest_cosines_without_the_sentence_itself(view):
    query = view.texts[5]
    table = views.neighbours(view, query, 4)
    assert list(table.columns) == list(views.MODELS)
    assert list(table.index) == [1, 2, 3, 4]
    for model, vectors in view.vectors.items():
        cosines = vectors @ vectors[5]
        order = [i for i in np.argsort(-cosines, kind="stable") if i != 5][:4]
        assert [re.sub(r"^-?\d\.\d\d  (\* )?", "", cell) for cell in table[model]] == [view.texts[i] for i in order]
        assert [float(cell[:4].replace(" ", "")) for cell in table[model]] == pytest.approx(cosines[order], abs=0.006)


def test_a_star_marks_what_the_teacher_finds_too(view):
    table = views.neighbours(view, "an old farmer", 8)
    taught = {cell.split("  ", 1)[1] for cell in table["teacher"]}
    for model in views.MODELS[1:]:
        for cell in table[model]:
            text = cell.split("  ", 1)[1]
            assert text.startswith("* ") == (text.removeprefix("* ") in taught)


def test_an_empty_sentence_is_refused(view):
    with pytest.raises(TalasError, match="empty"):
        views.neighbours(view, "   ")


# ---- relations


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_relations_are_the_cosines_of_every_layers_vectors(run, view, pooling):
    encoder = sources.load_student(run.params.student_spec.model_copy(update={"pooling": pooling}))
    texts = list(view.texts[:7])
    layers = views.layer_relations(encoder, texts)
    assert len(layers) == encoder.num_layers + 1
    for values in layers:
        assert values == pytest.approx(values.T, abs=1e-5)
        assert np.diag(values) == pytest.approx(np.ones(7), abs=1e-5)
    vectors = agreement.unit(encoder.encode(texts, normalize=False))
    assert layers[-1] == pytest.approx(vectors @ vectors.T, abs=1e-5)  # in the order of the texts


def test_agreement_of_relations():
    target = np.array([[1, 0.9, 0.1], [0.9, 1, 0.5], [0.1, 0.5, 1]])
    assert views.relation_agreement(target**3, target) == pytest.approx(1)  # any rising function
    assert views.relation_agreement(1 - target, target) == pytest.approx(-1)
    assert views.relation_agreement(np.ones((3, 3)), target) == 0


def test_the_drawing_has_every_layer_before_and_after(view):
    drawing = views.relations(view, 3, 6)
    layers = view.encoder("trained student").num_layers + 1
    assert drawing.markup.count("<rect") == 2 * (layers + 1) * 36
    assert drawing.markup.count(">teacher<") == 2
    assert drawing.markup.count("with the teacher") == 2 * layers
    assert views.relations(view, 3, 6) == drawing
    assert views.relations(view, 4, 6) != drawing
    assert views.relations(view, 3, 6, centred=True) != drawing


def test_sentences_stand_in_blocks():
    """Two groups of three, mixed: the order puts each group together."""
    vectors = np.array([[1, 0], [0, 1]] * 3, dtype=np.float32) + 0.01 * np.arange(12).reshape(6, 2)
    order = views._by_similarity(agreement.unit(vectors), np.arange(6))
    assert {tuple(sorted(order[:3])), tuple(sorted(order[3:]))} == {(0, 2, 4), (1, 3, 5)}


# ---- the map


@pytest.mark.parametrize("how", views.LAYOUTS)
def test_a_map_is_flat_finite_and_the_same_again(view, how):
    points = views.flatten(view.vectors["teacher"], how)
    assert points.shape == (60, 2)
    assert np.isfinite(points).all()
    assert points.mean(0) == pytest.approx([0, 0], abs=1e-6)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)
    if how == views.LAYOUTS[0]:
        assert points == pytest.approx(views.flatten(view.vectors["teacher"], how))


def test_a_turned_map_lies_on_the_other():
    points = np.random.default_rng(0).normal(size=(30, 2))
    angle = np.radians(70)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(
        [1, -1]
    )  # and a reflection
    assert views.turned_onto(points @ turn, points) == pytest.approx(points)


def test_the_map_shows_every_sentence_and_rings_the_nearest(view):
    drawing = views.corpus_map(view, query=view.texts[0])
    assert drawing.markup.count("<title>") == 60
    assert drawing.markup.count('r="8"') == 10
    assert "mail: " in drawing.markup
    with pytest.raises(TalasError, match="no map 'umap'"):
        views.corpus_map(view, how="umap")
    with pytest.raises(TalasError, match="no model 'other'"):
        views.corpus_map(view, model="other")


# ---- the perturbation


@pytest.fixture(scope="module")
def hill(run):
    return ascent.uphill(run, sentences=12)


@pytest.mark.parametrize("how", [Perturbation("sam"), Perturbation("asam")], ids=["sam", "asam"])
def test_the_ascent_by_radius(hill, how):
    before = [p.detach().clone() for p in hill.parameters()]
    table = ascent.ascent_by_rho(hill, how, (0.0, 1e-3, 1e-2, 0.1))
    assert table.loc[0, ["rise", "first order", "relative", "turn", "moved"]].to_numpy() == pytest.approx(
        np.zeros(5), abs=0.05
    )
    rising = table["rise"].to_numpy()
    assert (np.diff(rising) > 0).all()
    assert rising[1] == pytest.approx(table["first order"][1], rel=0.1)  # a small step is a straight one
    assert table["first order"].to_numpy() == pytest.approx(
        table["first order"][3] * table["rho"].to_numpy() / 0.1, rel=1e-4
    )
    assert (np.diff(table["relative"]) > 0).all()
    assert (np.diff(table["turn"])[1:] > 0).all()
    for parameter, was in zip(hill.parameters(), before, strict=True):
        assert torch.equal(parameter, was)
        assert parameter.grad is None


def test_the_first_order_rise_is_the_scaled_gradients_norm(hill):
    row = ascent.ascent_by_rho(hill, Perturbation("asam"), (0.5,)).iloc[0]
    loss = hill.objective(hill.batch)[0]
    grads = torch.autograd.grad(loss, hill.parameters(), allow_unused=True)
    pairs = [(p.detach(), g) for p, g in zip(hill.parameters(), grads, strict=True) if g is not None]
    squares = sum(float((p * g).square().sum()) for p, g in pairs)
    assert row["first order"] == pytest.approx(0.5 * squares**0.5, rel=1e-4)
    assert row["loss"] == pytest.approx(loss.item() + row["rise"], rel=1e-4)


def test_a_figure_for_every_radius_from_one_computation(view, monkeypatch):
    drawing = views.effect_of_rho(view, 0.5)
    monkeypatch.setattr(ascent, "ascent_by_rho", lambda *_: pytest.fail("computed again"))
    other = views.effect_of_rho(view, 0.05)
    assert drawing != other
    assert "ASAM, rho 0.05" in other.title
    assert drawing.markup.count("<polyline") == 5
    assert view.run.params.optimizer_spec.rho in views.radii(view)


def test_a_run_without_a_loss_has_nothing_to_climb(tmp_path, tiny_texts, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    static = small_run(tmp_path, tiny_texts[:60], method="static", optimizer="adamw", hold_out=0.0)
    own = views.open_view(static, sentences=25)
    with pytest.raises(TalasError, match="no loss to climb"):
        views.effect_of_rho(own)
    assert views.relations(own, 0, 5).markup.count("layer 0") == 2
    assert "no loss to climb" in controls.effect_of_rho(own, watched=True).children[1].value


# ---- gains


def test_gains_are_differences_of_scores(run):
    record = run.evaluation("tiny")
    better = max(("untrained_cls", "untrained_mean"), key=lambda n: record["references"][n]["avg"])
    drawing = views.gains(run, "tiny")
    for task, row in record["tasks"].items():
        gain = row["score"] - record["references"][better]["tasks"][task]["score"]
        assert f">{gain:+.1f}<" in drawing.markup
    against = views.gains(run, "tiny", "the teacher")
    assert f"{record['avg'] - record['references']['teacher']['avg']:+.1f} points" in against.title
    with pytest.raises(TalasError, match=r"no scores on 'mini'\. There are: tiny"):
        views.gains(run, "mini")


# ---- the widgets

PANELS = [
    (controls.neighbours, "count", 5),
    (controls.relations, "batch", 9),
    (controls.corpus_map, "model", "teacher"),
    (controls.effect_of_rho, "rho", 0.2),
    (controls.gains, "base", "the teacher"),
]


@pytest.mark.parametrize(("make", "name", "value"), PANELS, ids=[make.__name__ for make, *_ in PANELS])
def test_a_control_that_moves_redraws(make, name, value, view):
    box = make(view, watched=True)
    knobs, output = box.children
    assert "talas-figure" in output.value
    before = re.sub(r"\d+ ms", "", output.value)
    wanted = {"neighbours": "count", "corpus_map": "model", "gains": "base"}.get(make.__name__, name)
    descriptions = {"count": "neighbours", "base": "against"}
    (control,) = [c for c in knobs.children if c.description == descriptions.get(wanted, wanted)]
    control.value = value
    assert re.sub(r"\d+ ms", "", output.value) != before
    assert "talas-message" not in output.value


@pytest.mark.parametrize("make", [make for make, *_ in PANELS], ids=[make.__name__ for make, *_ in PANELS])
def test_where_nobody_looks_a_panel_is_the_figure(make, view):
    found = make(view)
    assert isinstance(found, (Drawing, pd.DataFrame))
    assert controls.markup(found)


def test_what_is_typed_is_shown_as_text_and_a_bad_one_as_a_message(view):
    box = controls.neighbours(view, "a <b>bold</b> boat", watched=True)
    text = box.children[0].children[0]
    text.value = "   "
    assert "talas-message" in box.children[1].value
    text.value = "a boat"
    assert "talas-message" not in box.children[1].value
    table = pd.DataFrame({"teacher": ["<script>x</script>"]})
    assert "&lt;script&gt;" in controls.markup(table)


def test_a_run_without_scores_says_so(tmp_path, tiny_texts, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    fresh = views.open_view(small_run(tmp_path, tiny_texts[:60], epochs=1), sentences=20)
    assert "04_evaluate" in controls.gains(fresh).data
