"""Results by item: what is written is read, and what is damaged or belongs elsewhere is not."""

from __future__ import annotations

import numpy as np
import pytest

from talas_lib import item_results
from talas_lib.errors import TalasError

SUITE = {"name": "mine", "sha256": ["ab"], "version": 2}
ITEMS = {
    "mood": {"truth": np.array([0, 1], np.int16), "predicted": np.array([1, 1], np.int16)},
    "pairs.v2": {"cosine": np.array([0.5, -0.25, 1], np.float32), "target": np.array([0, 1, 1], np.int8)},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "items" / "mine.npz"
    item_results.save(path, SUITE, ITEMS)
    return path


def test_written_and_read(file):
    found = item_results.load(file, SUITE)
    assert found.keys() == ITEMS.keys()
    for task, arrays in ITEMS.items():
        assert found[task].keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[task][name].dtype == array.dtype
            assert np.array_equal(found[task][name], array)
    assert [path.name for path in file.parent.iterdir()] == ["mine.npz"]  # nothing half written beside it


def test_a_suite_without_items(tmp_path):
    item_results.save(tmp_path / "none.npz", SUITE, {})
    assert item_results.load(tmp_path / "none.npz", SUITE) == {}


def test_another_evaluation_is_not_taken_for_this_one(file):
    assert item_results.load(file).keys() == ITEMS.keys()
    with pytest.raises(
        TalasError, match=r"mine\.npz belongs to another evaluation .* delete it and execute notebooks/04"
    ):
        item_results.load(file, SUITE | {"version": 3})


@pytest.mark.parametrize("damage", ["cut", "bytes", "empty", "text", "foreign"])
def test_damage_is_named(file, damage):
    content = file.read_bytes()
    if damage == "foreign":
        np.savez(file, other=np.zeros(2))
    else:
        middle = len(content) // 3
        garbage = content[:middle] + bytes(40) + content[middle + 40 :]
        file.write_bytes({"cut": content[:-30], "bytes": garbage, "empty": b"", "text": b"not an archive"}[damage])
    with pytest.raises(TalasError, match=r"mine\.npz is damaged \(.*\); delete it and execute notebooks/04_evaluate"):
        item_results.load(file, SUITE)


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(TalasError, match=r"no results by item in .*x\.npz: execute notebooks/04_evaluate\.ipynb"):
        item_results.load(tmp_path / "x.npz")
