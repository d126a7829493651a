"""Where folders are found, from wherever the code is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from talas_lib import paths
from talas_lib.errors import TalasError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, current folder inside it."""
    for name in ("params", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("TALAS_OUTPUTS", "TALAS_RESULTS", "TALAS_DATA", "TALAS_ASSETS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_same_root_from_the_project_from_notebooks_and_from_elsewhere(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert paths.root() == project
    monkeypatch.chdir(project / "notebooks")
    assert paths.root() == project
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # outside: the clone this package is installed from
    assert paths.root() == Path(paths.__file__).resolve().parent.parent


def test_no_project_anywhere_says_what_was_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "talas_lib" / "paths.py"))
    with pytest.raises(TalasError, match="params/ and notebooks/"):
        paths.root()


def test_outputs_follow_the_environment_at_each_call(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.outputs() == project / "outputs"
    monkeypatch.setenv("TALAS_OUTPUTS", "/somewhere/else")
    assert paths.outputs() == Path("/somewhere/else")
    assert paths.cache_dir() == Path("/somewhere/else/cache")
    monkeypatch.setenv("TALAS_OUTPUTS", "big/disk")  # relative: to the project, so that notebooks/ and the root agree
    monkeypatch.chdir(project / "notebooks")
    assert paths.outputs() == project / "big" / "disk"
    monkeypatch.setenv("TALAS_OUTPUTS", "~/runs")
    assert paths.outputs() == Path.home() / "runs"


def test_results_are_the_projects_unless_they_are_moved(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.results() == project / "results"
    monkeypatch.setenv("TALAS_RESULTS", "elsewhere/results")
    monkeypatch.chdir(project / "notebooks")
    assert paths.results() == project / "elsewhere" / "results"


def test_named_folders_are_none_until_named_and_must_exist(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.data_dir() is None
    assert paths.assets_dir() is None
    monkeypatch.setenv("TALAS_DATA", str(project / "params"))
    assert paths.data_dir() == project / "params"
    monkeypatch.setenv("TALAS_ASSETS", "/no/such/folder")
    with pytest.raises(TalasError, match=r"TALAS_ASSETS names '/no/such/folder'.*unset TALAS_ASSETS"):
        paths.assets_dir()


def test_locate_prefers_the_current_folder_and_falls_back_to_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "mine.csv").write_text("text\n")
    monkeypatch.chdir(project / "notebooks")
    assert paths.locate("mine.csv") == project / "mine.csv"
    (project / "notebooks" / "mine.csv").write_text("text\n")
    assert paths.locate("mine.csv") == project / "notebooks" / "mine.csv"
    assert paths.locate("~/x") == Path.home() / "x"
    assert paths.locate("/abs/x") == Path("/abs/x")
