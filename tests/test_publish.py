"""The folder that notebook 09 makes of a run, its model card, and whether everything that loads it gives the same vectors."""

from __future__ import annotations

import json
import re
import stat

import numpy as np
import pytest
import yaml
from small_run import small_run

from talas_lib import agreement, assess, export, params, runs
from talas_lib.errors import TalasError
from talas_lib.release import model_card, onnx_files, publish, shorter_vectors

HAVE_ONNX = all(__import__("importlib.util").util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAVE_ONNX, reason="needs onnx, onnxscript and onnxruntime")


def head_of(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---", 2)[1])


def test_the_card_after_training_says_what_is_known_and_no_more(own_run):
    card = (own_run.folder / "model" / "README.md").read_text(encoding="utf-8")
    head = head_of(card)
    assert head["library_name"] == "sentence-transformers"
    assert "model-index" not in head
    assert "license" not in head  # random weights have none
    record = own_run.read_record("train")
    assert f"{record['sentences']} sentences without labels, sha256 {record['corpus_sha256'][:12]}" in card
    assert "distilled with talas from `tiny` into `tiny` by talas with asam, on the corpus mine" in card
    assert "2 epochs, batches of 16, learning rate 0.001, seed 42, fp32" in card
    for section in ("How it was made", "Scores", "Intended use", "Limits", "Licences"):
        assert f"## {section}" in card
    assert "Not scored on tasks yet" in card
    assert "## Agreement" not in card
    assert "## Forms" not in card


def test_every_table_of_a_card_is_whole(own_run):
    for block in re.findall(r"(?:^\|.*\n)+", model_card.text(own_run), re.MULTILINE):
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1, block


def test_the_card_gets_scores_in_words_and_for_the_hub(own_run):
    record = assess.evaluate_run(own_run, params.load_tasks("tiny"))
    card = (own_run.folder / "model" / "README.md").read_text(encoding="utf-8")
    (entry,) = head_of(card)["model-index"]
    by_task = {row["dataset"]["type"]: row["metrics"][0] for row in entry["results"]}
    for task, row in record["tasks"].items():
        assert by_task[task] == {"type": row["metric"], "value": round(row["score"], 2)}
        others = (record["references"][name] for name in ("untrained_cls", "untrained_mean", "teacher"))
        scores = [row["score"], *(other["tasks"][task]["score"] for other in others)]
        assert f"| {task} | {row['metric']} | {row['n']:,} | {' | '.join(f'{s:.2f}' for s in scores)} |" in card
    assert f"| average |  |  | {record['avg']:.2f} |" in card
    assert "**How it was evaluated.**" in card


def test_licences_of_local_models_are_read_from_their_cards(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# x\n")
    spec = params.load_teacher("minilm-l6", str(tmp_path))
    assert model_card._licence(spec.model_copy(update={"licence": None})) == "cc-by-4.0"
    assert model_card._licence(spec) == "Apache-2.0"
    for broken in ("", "no front matter", "---\n: [\n---\n", "---\n- a list\n---\n"):
        (tmp_path / "README.md").write_text(broken)
        assert model_card._licence(spec.model_copy(update={"licence": None})) is None
    assert model_card._licence(params.load_teacher("tiny")) is None


def test_vectors_that_differ_are_refused():
    ours = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert export.check_equal(ours, ours, "x gives") == 1
    with pytest.raises(TalasError, match="x gives vectors of 1 numbers when loaded, not 2"):
        export.check_equal(ours, ours[:, :1], "x gives")
    with pytest.raises(TalasError, match=r"smallest cosine 0\.707"):
        export.check_equal(ours, np.array([[1.0, 1.0], [0.0, 2.0]]), "x gives")
    with pytest.raises(TalasError, match=r"lengths differ by up to 5.0e-01"):
        export.check_equal(ours, ours * [[1.5], [1]], "x gives")


def test_the_saved_weights_can_be_read_by_others(own_run):
    for file in (own_run.folder / "model").rglob("*"):
        if file.is_file():
            assert file.stat().st_mode & stat.S_IROTH, file


def test_plain_transformers_gives_the_same_vectors(own_run):
    from talas_lib import stages

    texts = ["a boat", "the old farmer walked to the market"]
    ours = stages.load_run_student(own_run).encode(texts, normalize=False)
    assert export.by_transformers(own_run.folder / "model", texts) == pytest.approx(ours, abs=1e-5)


def test_widths_are_halves():
    assert shorter_vectors.widths(384) == [384, 192, 96, 48, 24]
    assert shorter_vectors.widths(32) == [32, 16]
    assert shorter_vectors.widths(20) == [20]


def test_without_the_packages_nothing_is_written(own_run, monkeypatch):
    monkeypatch.setattr(onnx_files, "_PACKAGES", ("a_package_that_is_not_there",))
    with pytest.raises(TalasError, match="ONNX needs"):
        publish.export_run(own_run)
    assert not (own_run.folder / "export").exists()
    assert not list(own_run.folder.glob(".export*"))


def test_an_unfinished_run_is_refused(own_run):
    with pytest.raises(TalasError, match="has not finished training"):
        publish.export_run(runs.Run("tiny--tiny--talas--adamw--s1--00000000"))


# ---- the whole export


@pytest.fixture(scope="module")
def exported(own_run):
    if not HAVE_ONNX:
        pytest.skip("needs onnx, onnxscript and onnxruntime")
    return publish.export_run(own_run)


def test_the_folder_is_the_model_without_the_heads_and_with_both_graphs(own_run, exported):
    files = {str(f.relative_to(exported.folder)) for f in exported.folder.rglob("*") if f.is_file()}
    model = {str(f.relative_to(own_run.folder / "model")) for f in (own_run.folder / "model").rglob("*") if f.is_file()}
    assert files == model - {export.HEADS_FILE} | {"onnx/model.onnx", "onnx/model_int8.onnx"}
    for name in ("model.safetensors", "tokenizer.json", "1_Pooling/config.json"):
        assert (exported.folder / name).read_bytes() == (own_run.folder / "model" / name).read_bytes()
    assert (exported.new, exported.kind) == (True, "not trained on")
    assert set(exported.texts) == set(agreement.unseen_texts(own_run))
    assert not list(own_run.folder.glob(".export*"))


def test_everything_that_loads_it_gives_the_same_vectors(exported):
    loads = publish.check_loads(exported, 16)
    assert loads.keys() == {"sentence-transformers", "transformers", "ONNX Runtime"}
    assert min(loads.values()) > 0.99999


def test_forms_have_size_parity_and_speed(exported):
    found = publish.forms(exported, rounds=1)
    assert list(found) == ["torch", "ONNX fp32", "ONNX int8"]
    assert found["torch"]["smallest_cosine"] == pytest.approx(1, abs=1e-6)
    assert found["ONNX fp32"]["smallest_cosine"] > 0.99999
    assert found["ONNX int8"]["size_mb"] < 0.65 * found["ONNX fp32"]["size_mb"]
    assert all(row["ms_one"] > 0 and row["ms_many"] > 0 for row in found.values())


def test_the_curve_of_widths(exported):
    suite = params.load_tasks("tiny")
    rows = shorter_vectors.width_curve(exported, suite)
    assert [(row["width"], row["how"]) for row in rows] == [(w, h) for w in (32, 16) for h in ("first", "principal")]
    record = assess.evaluate_run(exported.run, suite)
    assert rows[0]["avg"] == pytest.approx(record["avg"], abs=0.2)  # all numbers: the student itself
    found = agreement.measure_run(exported.run)["teachers"]["tiny"]["student"]
    assert rows[0]["overlap_at_10"] == pytest.approx(found["overlap_at_10"]["value"], abs=1e-6)
    table = shorter_vectors.curve_table(rows)
    assert list(table.index) == [32, 16]
    assert ("avg", "first") in table.columns


def test_the_finished_export_is_on_record_and_in_the_card(own_run, exported):
    found = publish.forms(exported, rounds=1)
    rows = shorter_vectors.width_curve(exported)
    folder = publish.finish(exported, publish.check_loads(exported, 8), found, rows)
    record = own_run.read_record("export")
    assert record["widths"] == json.loads(json.dumps(rows))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == (own_run.folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "In this folder the vectors" not in card
    assert f"| ONNX int8 | {found['ONNX int8']['size_mb']:.2f} |" in card
    assert "## Shorter vectors" in card
    assert f"| 16 | principal | {rows[3]['pair_spearman']:.2f} |" in card
    assert f"on {len(exported.texts)} texts (not trained on)" in card
    test_every_table_of_a_card_is_whole(own_run)


@pytest.mark.slow
@needs_onnx
def test_shorter_vectors_can_be_exported(tmp_path, tiny_texts, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    short = small_run(tmp_path, tiny_texts[:120])
    e = publish.export_run(short, dim=5)
    assert e.vectors.shape == (len(e.texts), 5)
    assert e.vectors == pytest.approx((e.whole - e.directions.mean) @ e.directions.directions[:, :5], abs=1e-5)
    loads = publish.check_loads(e)
    assert len(loads) == 3
    assert min(loads.values()) > 0.99999
    rows = shorter_vectors.width_curve(e)
    assert rows[0]["width"] == 32  # the curve is the student's
    folder = publish.finish(e, loads, publish.forms(e, rounds=1), rows)
    assert "In this folder the vectors have 5 numbers" in (folder / "README.md").read_text(encoding="utf-8")
    assert "In this folder" not in (short.folder / "model" / "README.md").read_text(encoding="utf-8")
    before = sorted(short.folder.rglob("*"))
    with pytest.raises(TalasError, match=r"dim is 99, and the student's vectors have 32 numbers.*Accepted: up to 32"):
        publish.export_run(short, dim=99)
    assert sorted(short.folder.rglob("*")) == before


@pytest.mark.slow
def test_a_second_export_replaces_the_first(own_run, exported):
    (exported.folder / "left over.txt").write_text("x")
    again = publish.export_run(own_run)
    assert not (again.folder / "left over.txt").exists()
    assert (again.folder / "onnx" / "model.onnx").is_file()


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("method", ["leaf", "distill_moe", "static"])
def test_students_with_a_module_behind_the_pooling_and_static_ones(method, tmp_path, tiny_texts, monkeypatch):
    from talas_lib import stages

    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    changes = {"method": method, "optimizer": "adamw", "epochs": 1, "hold_out": 0.0}
    if method == "distill_moe":
        file = tmp_path / "mine.csv"
        from small_run import SETTINGS, write_csv

        write_csv(file, tiny_texts[:60])
        p = params.resolve("03_train", SETTINGS | {"corpus": str(file)} | changes)
        stages.cache_tokens(p, stages.load_corpus(p))
    e = publish.export_run(small_run(tmp_path, tiny_texts[:60], **changes))
    assert not e.new
    assert e.kind == "of the training corpus"
    loads = publish.check_loads(e, 8)
    assert min(loads.values()) > 0.99999
    assert len(loads) == (1 if method == "static" else 3)
    found = publish.forms(e, rounds=1)
    publish.finish(e, loads, found, shorter_vectors.width_curve(e))
    assert list(found) == (["torch"] if method == "static" else ["torch", "ONNX fp32", "ONNX int8"])
    said = publish.loading_lines("x", publish.trusted(e.folder), e.static)
    assert ("trust_remote_code" in said) == (method == "distill_moe")
    assert ("OnnxEncoder" in said) == (method != "static")
