"""The method of docs/extending.md, taken from the page as it stands there: it is short, it registers, and it trains."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from talas_lib import methods, params, paths, stages
from talas_lib.errors import TalasError
from talas_lib.export import HEADS_FILE

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
NAME = "mine"


def block(language: str) -> str:
    """The one fenced block of a language."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's method in a package folder and a project of its own, under the name the page gives it."""
    package = tmp_path / "package"
    package.mkdir()
    (package / f"{NAME}.py").write_text(block("python"), encoding="utf-8")
    shutil.copytree(paths.params_dir(), tmp_path / "params")
    (tmp_path / "params" / "methods" / f"{NAME}.yaml").write_text(block("yaml"), encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(package)])
    yield NAME
    sys.modules.pop(f"{methods.__name__}.{NAME}", None)
    vars(methods).pop(NAME, None)


def resolved(**values):
    tiny = {"teacher": "tiny-xlmr", "student": "tiny", "corpus": "tiny", "device": "cpu", "optimizer": "adamw"}
    short = {"max_sentences": 16, "batch_size": 8, "epochs": 1, "lr": 1e-3}
    return params.resolve("03_train", {"method": NAME} | tiny | short | values)


def test_it_is_about_fifteen_lines() -> None:
    lines = [line for line in block("python").splitlines() if line.strip()]
    assert 12 <= len(lines) <= 18


def test_it_is_named_as_the_page_says(mine) -> None:
    assert f"talas_lib/methods/{mine}.py" in PAGE
    assert f"params/methods/{mine}.yaml" in PAGE
    assert f"-p method {mine}" in PAGE
    assert mine in methods.available()
    assert params.load_method(mine) == methods.config_class(mine)()
    assert set(params.load_method(mine).model_fields_set) == set(methods.config_class(mine).model_fields)


def test_it_trains_two_steps_and_leaves_a_student(mine) -> None:
    run = stages.train_run(resolved())
    rows = run.read_metrics()
    assert rows[-1]["step"] == 2
    terms = {key.removeprefix("loss_") for key in rows[0] if key.startswith("loss_")}
    assert terms == {"pull", "spread"}
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss_pull"] + 0.1 * rows[0]["loss_spread"])
    assert run.read_record("train")["output"] == "pooled"
    assert load_file(run.folder / "model" / HEADS_FILE)["weight"].shape == (32, 32)
    assert mine in run.id


def test_its_values_are_checked_and_reach_the_loss(mine) -> None:
    p = resolved(method_params={"weight_spread": 0.5})
    assert p.method_config.weight_spread == 0.5
    assert resolved().run_id != p.run_id
    with pytest.raises(TalasError, match="weight_spred"):
        resolved(method_params={"weight_spred": 0.5})


def test_disam_is_refused_until_it_has_a_row_loss(mine) -> None:
    p = resolved(optimizer="disam")
    with pytest.raises(TalasError, match="Mine has no loss that is a mean over sentences"):
        stages.train_run(p)
    method_class = methods.method_class(mine)
    lines = re.search(r"( {4}def row_loss.*?)\n\n## ", PAGE, re.DOTALL)
    assert lines is not None
    scope: dict = {}
    exec("class Rows:\n" + lines.group(1), scope)  # the page's lines, indented as they stand there
    method_class.row_loss = scope["Rows"].row_loss
    run = stages.train_run(p)
    assert torch.isfinite(torch.tensor(run.read_metrics()[-1]["loss"]))
