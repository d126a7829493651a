"""Agreement of a student with its teacher: the numbers on vectors worked out by hand, and what is recorded of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_run import small_run, write_csv

from talas_lib import agreement, params, runs, sources, stages
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.texts import comparison_key


def at(*degrees: float) -> np.ndarray:
    """Points on the unit circle."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


@pytest.fixture
def random_vectors():
    return np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)


# ---- pairs


def test_the_order_of_pairs_by_hand():
    """Degrees between, in the order 01 02 03 12 13 23: teacher 10 30 70 20 60 40, student 10 30 45 20 35 15."""
    teacher, student = at(0, 10, 30, 70), at(0, 10, 30, 45)
    ours = np.array([1, 3, 6, 2, 5, 4])  # their ranks
    theirs = np.array([1, 4, 6, 3, 5, 2])
    expected = np.corrcoef(ours, theirs)[0, 1]
    assert agreement.pair_spearman(teacher, student)[0] == pytest.approx(expected, abs=1e-6)


def test_pairs_in_the_opposite_order():
    teacher = at(0, 10, 30)  # 10, 30, 20 degrees apart
    student = at(0, 30, 10)  # 30, 10, 20
    assert agreement.pair_spearman(teacher, student)[0] == pytest.approx(-1)


def test_a_rotated_and_scaled_copy_agrees_wholly(random_vectors):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0]
    lengths = np.random.default_rng(2).uniform(0.1, 9, size=(200, 1))
    sides = {"texts": random_vectors, "documents": random_vectors[:50]}
    turned = {"texts": lengths * random_vectors @ rotation, "documents": 3 * random_vectors[:50] @ rotation}
    found = agreement.compare_vectors(sides, turned)
    assert found.keys() == agreement.MEASURES.keys()
    for name, row in found.items():
        assert row["value"] == pytest.approx(100, abs=0.1), name
        assert row["error"] == pytest.approx(0, abs=0.1), name


def test_unrelated_vectors_agree_by_chance(random_vectors):
    others = np.random.default_rng(9).normal(size=(200, 8)).astype(np.float32)
    correlation, error = agreement.pair_spearman(random_vectors, others)
    assert abs(correlation) < 4 * error
    assert 0 < error < 0.05
    overlap = agreement.neighbour_overlap(random_vectors, others)
    assert overlap.mean() == pytest.approx(10 / 199, abs=0.03)


def test_the_jackknife_says_how_far_samples_differ():
    """Its error, averaged over samples, is about the spread of the samples' values."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(40):
        teacher = rng.normal(size=(60, 4))
        found.append(agreement.pair_spearman(teacher, teacher + rng.normal(size=(60, 4))))
    values, errors = np.array(found).T
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.5)


def test_few_texts_have_no_error_and_constant_vectors_no_order():
    assert np.isnan(agreement.pair_spearman(at(0, 10, 30), at(0, 10, 30))[1])
    assert agreement.pair_spearman(at(0, 10, 30), at(5, 5, 5))[0] == 0
    assert agreement.pair_spearman(at(5, 5, 5), at(0, 10, 30))[0] == 0
    with pytest.raises(ValueError, match="three or more"):
        agreement.pair_spearman(at(0, 1), at(0, 1))


# ---- neighbours


def test_neighbours_by_hand():
    teacher, student = at(0, 10, 30, 70), at(0, 40, 30, 41)
    # nearest other: teacher 0-1, 1-0, 2-1, 3-2; student 0-2, 1-3, 2-1, 3-1
    assert agreement.neighbour_overlap(teacher, student, depth=1).tolist() == [0, 0, 1, 0]
    # two nearest: teacher {1,2} {0,2} {1,0} {2,1}; student {2,1} {3,2} {1,3} {1,2}
    assert agreement.neighbour_overlap(teacher, student, depth=2).tolist() == [1, 0.5, 0.5, 1]


def test_a_text_is_not_its_own_neighbour_even_beside_its_copy():
    vectors = np.concatenate([at(0, 0, 0), at(*range(10, 70, 5))])
    near = agreement.others_nearest(vectors, 3)
    assert not (near == np.arange(len(vectors))[:, None]).any()
    assert near.shape == (15, 3)


def test_neighbours_need_others():
    with pytest.raises(ValueError, match="more than 11 texts, got 11"):
        agreement.neighbour_overlap(at(*range(11)), at(*range(11)))


# ---- ranking


def test_a_ranking_by_hand():
    """Twelve documents; the student takes the teacher's ranking with the first two exchanged."""
    query, documents = at(0), at(*range(1, 13))
    exchanged = at(2, 1, *range(3, 13))
    found = agreement.ranking_agreement((query, documents), (query, exchanged))
    discount = 1 / np.log2(np.arange(2, 12))
    worth = np.arange(10, 0, -1)
    swapped = worth.copy()
    swapped[:2] = worth[1], worth[0]
    assert found["ndcg_at_10"] == pytest.approx([swapped @ discount / (worth @ discount)])
    assert found["first_found"].tolist() == [1]


def test_the_teachers_first_may_be_missed():
    query, documents = at(0), at(*range(1, 13))
    student = at(90, *range(2, 13))  # the teacher's first is the student's last
    found = agreement.ranking_agreement((query, documents), (query, student))
    assert found["first_found"].tolist() == [0]
    assert 0 < found["ndcg_at_10"][0] < 1


def test_a_ranking_needs_documents_that_could_be_wrong():
    with pytest.raises(ValueError, match="more than 10 documents, got 10"):
        agreement.ranking_agreement((at(0), at(*range(10))), (at(0), at(*range(10))))


# ---- a run


@pytest.fixture(scope="module")
def record(own_run):
    return agreement.measure_run(own_run)


def test_the_unseen_sentences_are_those_of_the_corpus_that_training_left_out(own_run):
    unseen, trained = agreement.unseen_texts(own_run), stages.load_corpus(own_run.params).texts
    assert set(unseen) | set(trained) == set(sources.load_corpus(own_run.params.corpus_spec).texts)
    assert not {comparison_key(t) for t in unseen} & {comparison_key(t) for t in trained}
    assert len(unseen) >= agreement.LEAST


def test_a_run_has_every_measure_of_every_model(own_run, record):
    assert record == json.loads(json.dumps(own_run.read_record("agreement")))
    assert record["sentences"] == len(agreement.unseen_texts(own_run))
    assert record["documents_ranked"] == len(set(stages.load_corpus(own_run.params).texts))
    (rows,) = record["teachers"].values()
    assert set(rows) == set(agreement.MODELS)
    for row in rows.values():
        assert row.keys() == agreement.MEASURES.keys()
        assert all(-100 <= cell["value"] <= 100 and cell["error"] >= 0 for cell in row.values())


def test_a_student_that_is_its_teacher_agrees_wholly(tmp_path, tiny_texts, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    teacher = str(sources.model_folder(params.load_teacher("tiny")))
    copy = small_run(tmp_path, tiny_texts[:160], student_source=teacher, optimizer="adamw", epochs=1, lr=1e-9)
    rows = agreement.measure_run(copy)["teachers"]["tiny"]
    for name in agreement.MEASURES:
        for model in ("untrained_mean", "student"):  # the teacher pools by mean
            assert rows[model][name]["value"] == pytest.approx(100, abs=0.5), (model, name)
    assert rows["untrained_cls"]["pair_spearman"]["value"] < 90


def test_the_numbers_are_those_of_the_vectors(own_run, record):
    texts = agreement.hash_order(agreement.unseen_texts(own_run), "agreement")
    p = own_run.params
    teacher = sources.load_teacher(p.teacher_spec).encode(texts)
    student = stages.load_run_student(own_run).encode(texts, normalize=False)
    expected = 100 * agreement.neighbour_overlap(teacher, student).mean()
    assert record["teachers"]["tiny"]["student"]["overlap_at_10"]["value"] == pytest.approx(expected, abs=1e-6)


def test_it_is_measured_once(own_run, record, monkeypatch):
    monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("something was encoded again"))
    assert agreement.measure_run(own_run) == record


def test_a_file_of_sentences_takes_the_corpus_columns_and_leaves_out_what_was_trained_on(own_run, tmp_path, tiny_texts):
    trained = stages.load_corpus(own_run.params).texts
    file = write_csv(tmp_path / "new.csv", [*tiny_texts[160:200], trained[0], trained[1].upper()])
    found = agreement.unseen_texts(own_run, str(file))
    assert set(found) == set(tiny_texts[160:200])


def test_too_few_unseen_sentences_are_refused_with_the_ways_out(own_run, tmp_path, tiny_texts):
    file = write_csv(tmp_path / "few.csv", tiny_texts[160:165])
    with pytest.raises(TalasError, match=r"holds 5 sentences.*20 are needed.*hold_out 0.1"):
        agreement.unseen_texts(own_run, str(file))


def test_the_table_and_the_words(record):
    table = agreement.table(record)
    assert table.shape == (3, len(agreement.MEASURES))
    assert list(table.index)[-1] == "trained student"
    said = agreement.in_words(record)
    assert f"{record['sentences']} sentences that were not trained on" in said
    assert f"{record['teachers']['tiny']['student']['overlap_at_10']['value']:.1f} +-" in said


def test_the_command(own_run, record, capsys):
    assert agreement.main([own_run.id]) == 0
    said = capsys.readouterr().out
    assert own_run.id in said
    assert "trained student" in said
    assert "Agreement with the teacher" in (own_run.folder / "model" / "README.md").read_text()


def test_the_command_refuses_with_a_message(own_run, capsys):
    assert agreement.main(["no-such-run"]) == 2
    assert "is no run id" in capsys.readouterr().err
    assert agreement.main([own_run.id, "--unseen", "nothing.csv"]) == 2
    assert "nothing.csv" in capsys.readouterr().err


def test_several_teachers_are_compared_with_one_by_one(tmp_path, tiny_texts, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    several = small_run(
        tmp_path,
        tiny_texts[:120],
        teachers=["tiny", "tiny-xlmr"],
        method="majority_vote",
        optimizer="adamw",
        epochs=1,
        hold_out=0.3,
    )
    record = agreement.measure_run(several)
    assert list(record["teachers"]) == ["tiny", "tiny-xlmr"]
    assert agreement.table(record, "tiny-xlmr").loc["trained student"].notna().all()
    assert isinstance(runs.find_run(several.id), runs.Run)
