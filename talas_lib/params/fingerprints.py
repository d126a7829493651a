"""What a model or corpus is, independent of where it lies: the part of a run's identity that a path must not decide."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from talas_lib.errors import TalasError
from talas_lib.params.loading import load_tasks
from talas_lib.params.sources import WEIGHTS, ModelSpec, check_available, corpus_path, part_file, resolve_source
from talas_lib.params.specs import CorpusPart, CorpusSpec

# everything from_pretrained reads: weights, configs (also 1_Pooling/config.json), tokenizers; a Dense behind the pooling
_MODEL_FILES = (*WEIGHTS, "*.json", "*.txt", "*.model", "*/config.json", "[0-9]_*/model.safetensors")
_hashes: dict[tuple[str, int, int], str] = {}


def model_identity(spec: ModelSpec) -> dict[str, Any]:
    """The model behind a spec: an asset's name, a hub id with revision, a tiny recipe, or the sha256 of a
    folder's files.

    Raises TalasError for a local folder that is not there.
    """
    source = resolve_source(spec)
    if source.kind == "local":
        check_available(spec)
        assert source.path is not None
        return {"kind": "local", "sha256": folder_sha256(source.path)}
    if source.kind == "package":
        return {"kind": "package", "asset": source.asset}
    if source.kind == "tiny":
        return {"kind": "tiny", "arch": source.arch, "seed": source.seed}
    return {"kind": "hub", "hub_id": source.hub_id, "revision": source.revision}


def corpus_identity(spec: CorpusSpec) -> dict[str, Any]:
    """The sentences behind a spec: a recipe, or the sha256 of a file's bytes and the columns read.

    A recipe names the tests it leaves out; that of a built corpus has the bytes of each part's file, or its table
    on the hub. Raises TalasError for a file that is not there.
    """
    drawn: dict[str, Any] = {"sentences": spec.sentences, "seed": spec.seed}
    if spec.kind == "packaged":
        drawn |= {"min_words": spec.min_words, "max_words": spec.max_words}
    if spec.kind == "built":
        drawn["parts"] = [_part_identity(spec, part) for part in spec.parts]
    if spec.kind in ("packaged", "built", "tiny"):
        suite = load_tasks(spec.held_out).tasks if spec.held_out else ()
        return {"kind": spec.kind, "held_out": [[t.name, t.builder, t.options] for t in suite], **drawn}
    columns = {"text_column": spec.text_column, "source_column": spec.source_column}
    return {"kind": "file", "sha256": file_sha256(corpus_path(spec)), **columns, **drawn}


def _part_identity(spec: CorpusSpec, part: CorpusPart) -> dict[str, Any]:
    file = part_file(spec, part)
    drawn = {"name": part.name, "kind": part.kind, "count": part.count}
    if file is not None:
        return {**drawn, "sha256": file_sha256(file)}
    assert part.hub is not None
    return {**drawn, "hub": part.hub.model_dump(mode="json"), "split": part.split}


def folder_sha256(folder: Path) -> str:
    """One hash over the model files of a folder, by name and content; other files do not count."""
    files = {path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    if any(path.suffix == ".safetensors" for path in files):  # then no .bin is read
        files = {path for path in files if path.suffix != ".bin"}
    if not files:
        raise TalasError(f"{folder} holds no model files ({', '.join(_MODEL_FILES)})")
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes; remembered while the process lives, as long as size and time of change stay the same."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with path.open("rb") as stream:
            _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[key]
