"""Every place of the library that writes a file: through `files`, or one of those listed here with what makes it safe."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_architecture import PACKAGE, modules

WRITES = {
    "write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "save", "savez", "savez_compressed", "savetxt", "tofile",
    "save_file", "save_model", "save_pretrained", "savefig", "copy", "copy2", "copyfile", "copyfileobj", "copytree", "move",
    "rename", "renames", "replace", "open_memmap", "memmap", "dump", "to_csv", "to_json", "to_pickle", "to_parquet", "writestr",
    "extract", "extractall", "export", "mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryDirectory", "truncate",
}  # fmt: skip
# module.function: what stands between a death or a full disk there and a reader.
LISTED = {
    "assets._accepted": "a wheel whose hash was checked, one rename",
    "assets._build": "into a folder of its own under a lock, one rename",
    "assets._archive": "inside that folder",
    "assets._extract": "inside that folder, hashed",
    "assets.pip_fetch": "pip's log, in a folder that is cleared before and after",
    "cache_files.save_array": "into memory, then atomic_write_bytes",
    "encoders.save_transformer": "into the folder of its caller, export or onnx_files",
    "export.save_student": "into a staging folder, one rename",
    "export._write_modules": "inside that folder",
    "export.replace_folder": "the renames themselves",
    "files.replacing": "the rename itself",
    "files.drop_torn_line": "cuts what does not count",
    "item_results.save": "into memory, then atomic_write_bytes",
    "release/onnx_files._staged": "a staging folder, one rename",
    "release/onnx_files.export_onnx": "inside that folder",
    "release/publish.export_run": "into a staging folder, one rename",
    "release/publish._with_directions": "inside that folder",
    "runs.append_metrics": "a line at the end; a torn one is not read",
    "signal_files.begin": "an empty array, one rename; its record counts",
    "signal_files.put": "a shard in its place, which counts when the record has its hash",
    "sources._tiny_folder": "into a staging folder with hashes, one rename",
    "static_encoder.save": "into the folder of its caller, export",
    "tiny.build": "into the folder of its caller, sources",
    "train.train": "a checkpoint, by checkpoints.save",
}
OURS = {file.stem for file in modules()}  # what `save` of a module of the library calls is looked at there


def writing(node: ast.Call) -> str | None:
    """What a call writes with, None when it does not write."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    of = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if name == "open":
        at = 1 if of in ("", "io", "gzip") else 0
        given = [*node.args[at : at + 1], *(k.value for k in node.keywords if k.arg == "mode")]
        modes = [m.value for m in given if isinstance(m, ast.Constant) and isinstance(m.value, str)]
        unknown = given and not modes and not of
        return (
            f"open {given and ast.unparse(given[0])}" if unknown or any(set(m) & set("wax+") for m in modes) else None
        )
    theirs = {
        "replace": of == "os",  # else of texts and dataclasses
        "copy": of == "shutil",
        "rename": of == "os" or not node.keywords,  # with keywords that of a table
        "to_csv": bool(node.args),  # else it gives a text
        "save": of not in OURS,
    }
    return name if name in WRITES and theirs.get(name, True) else None


def sites(source: str) -> Iterator[tuple[str, str]]:
    """(innermost function, call) of every place that writes outside of a `with replacing(...)`."""

    def walk(node: ast.AST, function: str, safe: bool) -> Iterator[tuple[str, str]]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.With):
            safe = safe or any("replacing(" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call) and not safe and (what := writing(node)) is not None:
            yield function, what
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, safe)

    return walk(ast.parse(source), "", False)


def test_every_place_that_writes_is_whole_or_listed_with_its_reason() -> None:
    found = {
        f"{file.relative_to(PACKAGE).with_suffix('').as_posix()}.{function}": call
        for file in modules()
        for function, call in sites(file.read_text(encoding="utf-8"))
    }
    assert {place: call for place, call in found.items() if place not in LISTED} == {}
    assert LISTED.keys() - found.keys() == set(), "listed, and writes no more"


@pytest.mark.parametrize(
    "call",
    [
        "open('x', 'w')",
        "open('x', mode)",
        "Path('x').open('ab')",
        "Path('x').open(mode='r+b')",
        "Path('x').write_text('')",
        "np.save('x', a)",
        "torch.save(a, 'x')",
        "save_file(a, 'x')",
        "model.save_pretrained('x')",
        "shutil.copytree('x', 'y')",
        "os.replace('x', 'y')",
        "Path('x').rename('y')",
        "table.to_csv('x')",
        "json.dump(a, stream)",
        "gzip.open('x', 'wt')",
    ],
)
def test_a_place_that_writes_is_seen(call: str) -> None:
    assert [function for function, _ in sites(f"def f():\n    {call}")] == ["f"]
    assert list(sites(f"def f():\n    with replacing(path) as temporary:\n        {call}")) == []


@pytest.mark.parametrize(
    "call",
    [
        "open('x')",
        "Path('x').open('rb')",
        "text.replace('a', 'b')",
        "table.rename(columns={})",
        "table.to_csv(index=False)",
    ],
)
def test_what_reads_is_no_such_place(call: str) -> None:
    assert list(sites(f"def f():\n    {call}")) == []
