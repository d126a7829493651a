"""A trained student as a folder that sentence-transformers and transformers load, with a model card and the heads beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from talas_lib import model_folders
from talas_lib.errors import TalasError

if TYPE_CHECKING:
    from torch import nn

    from talas_lib.encoders import Encoder
    from talas_lib.static_encoder import StaticEncoder

HEADS_FILE = "talas_heads.safetensors"
Output = Literal["pooled", "projected", "static"]


def save_student(
    student: Encoder | StaticEncoder, folder: Path, *, heads: nn.Module | None = None, card: str = ""
) -> Path:
    """Write `folder` in one move: Transformer, Pooling and the student's projection if it has one (all safetensors),
    tokenizer, card, and the heads for further training.

    An existing folder is replaced as a whole, never mixed with. Vectors of the loaded folder equal the student's:
    `check_loads` shows it. TalasError for a projection that has no form in such a folder (see output_modules).
    """
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_modules(student, staging)
        if card:
            (staging / "README.md").write_text(card, encoding="utf-8")
        state = {} if heads is None else {k: v.detach().contiguous() for k, v in heads.state_dict().items()}
        if state:
            save_file(state, staging / HEADS_FILE)
        _replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _write_modules(student: Encoder | StaticEncoder, folder: Path) -> None:
    """The modules of sentence-transformers that make up the student."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from talas_lib.encoders import quiet
    from talas_lib.static_encoder import StaticEncoder

    if isinstance(student, StaticEncoder):
        student.save(folder)
        return
    with tempfile.TemporaryDirectory() as plain:
        student.save_transformer(Path(plain))
        with quiet():
            body = Transformer(plain, max_seq_length=student.max_length)
            pooling = Pooling(student.dim, _pooling_mode(student.pooling))
            model = SentenceTransformer(modules=[body, pooling, *_behind_pooling(student)], device="cpu")
            model.save_pretrained(str(folder), create_model_card=False)


def _behind_pooling(student: Encoder) -> list[Any]:
    if student.projection is None:
        return []
    from talas_lib import output_modules

    return [output_modules.as_module(student.projection)]


def check_loads(
    student: Encoder | StaticEncoder, folder: Path, texts: Sequence[str], *, tolerance: float = 1e-5
) -> float:
    """Smallest cosine between the student's vectors and those of SentenceTransformer(folder).

    TalasError below 1 - tolerance, and for vectors of another width or length (relative difference above 1e-3).
    """
    from sentence_transformers import SentenceTransformer

    from talas_lib.encoders import quiet

    ours = student.encode(list(texts), normalize=False)
    with quiet():
        trusted = model_folders.needs_talas(folder)  # the folder is ours, and so is the module it names
        loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=trusted)
    theirs = np.asarray(loaded.encode(list(texts), normalize_embeddings=False, show_progress_bar=False))
    if ours.shape != theirs.shape:
        raise TalasError(f"{folder} gives vectors of {theirs.shape[1]} numbers when loaded, not {ours.shape[1]}")
    lengths = [np.linalg.norm(vectors, axis=1) for vectors in (ours, theirs)]
    worst = float(((ours * theirs).sum(1) / (lengths[0] * lengths[1])).min())
    longer = float(np.abs(lengths[1] / lengths[0] - 1).max())
    if worst < 1 - tolerance or longer > 1e-3:
        raise TalasError(
            f"{folder} gives other vectors when loaded: smallest cosine {worst:.7f}, lengths differ by up to {longer:.1e}"
        )
    return worst


def model_card(
    *,
    name: str,
    teacher: str | None,
    student: str,
    method: str,
    corpus: str,
    pooling: str,
    scores: Mapping[str, Mapping[str, Any]],
    dim: int | None = None,
    output: Output = "pooled",
    needs_talas: bool = False,
) -> str:
    """README.md of a saved student. scores: task -> {metric, student, teacher, untrained} on a 0 to 100 scale.

    teacher: None for a method without one; dim: width of the vectors; output: the pooled vector, or a module's behind it;
    needs_talas: see model_folders.needs_talas.
    """
    origin = f"A sentence encoder distilled with talas from `{teacher}` into `{student}`"
    if teacher is None:
        origin = f"A sentence encoder trained with talas from `{student}`"
    trust = ", trust_remote_code=True" if needs_talas else ""
    width = f" of {dim} numbers" if dim else ""
    vector = f"The vector{width} is the {pooling} pooling of the last layer"
    if output == "static":
        vector = (
            f"The vector{width} is the mean of the sentence's token vectors, read from a table; there is no transformer"
        )
    elif output == "projected":
        vector += ", put through the module that the method trained with it and that stays in this folder"
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, feature-extraction, distillation, talas]",
        "---",
        f"# {name}",
        "",
        f"{origin} by {method}, on the corpus {corpus},",
        "without labels.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        f'model = SentenceTransformer("path/to/{name}"{trust})',
        'vectors = model.encode(["a first sentence", "a second one"])',
        "```",
        "",
        f"{vector}. It is not normalised; compare by cosine.",
        "",
        *(["That module comes from the package `talas_lib`, which has to be installed.", ""] if needs_talas else []),
    ]
    if scores:
        lines += [
            "| task | metric | this student | untrained student | teacher |",
            "| --- | --- | ---: | ---: | ---: |",
        ]
        for task, row in scores.items():
            cells = (_number(row.get(k)) for k in ("student", "untrained", "teacher"))
            lines.append(f"| {task} | {row.get('metric', '')} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "Scores are on a 0 to 100 scale, from frozen vectors of one run. The model has seen only its training corpus; on texts",
        "of another kind, other languages or much longer texts it may do worse than these numbers.",
        "",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _pooling_mode(pooling: str) -> str:
    return {"last": "lasttoken"}.get(pooling, pooling)


def _replace_folder(staging: Path, folder: Path) -> None:
    os.chmod(staging, 0o755)
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old / "was")
        os.replace(staging, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, folder)
