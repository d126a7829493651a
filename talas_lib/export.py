"""A trained student as a folder that sentence-transformers and transformers load, with a model card and the heads beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib.errors import TalasError

if TYPE_CHECKING:
    from torch import nn

    from talas_lib.encoders import Encoder

HEADS_FILE = "talas_heads.safetensors"


def save_student(student: Encoder, folder: Path, *, heads: nn.Module | None = None, card: str = "") -> Path:
    """Write `folder` in one move: Transformer + Pooling (safetensors), tokenizer, card, and the heads for further training.

    An existing folder is replaced as a whole, never mixed with. Vectors of the loaded folder equal the student's:
    `check_loads` shows it.
    """
    from safetensors.torch import save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from talas_lib.encoders import quiet

    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with tempfile.TemporaryDirectory() as plain:
            student.save_transformer(Path(plain))
            with quiet():
                body = Transformer(plain, max_seq_length=student.max_length)
                pooling = Pooling(student.dim, _pooling_mode(student.pooling))
                model = SentenceTransformer(modules=[body, pooling], device="cpu")
                model.save_pretrained(str(staging), create_model_card=False)
        if card:
            (staging / "README.md").write_text(card, encoding="utf-8")
        state = {} if heads is None else {k: v.detach().contiguous() for k, v in heads.state_dict().items()}
        if state:
            save_file(state, staging / HEADS_FILE)
        _replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def check_loads(student: Encoder, folder: Path, texts: Sequence[str], *, tolerance: float = 1e-5) -> float:
    """Smallest cosine between the student's vectors and those of SentenceTransformer(folder); TalasError below 1 - tolerance."""
    from sentence_transformers import SentenceTransformer

    from talas_lib.encoders import quiet

    ours = student.encode(list(texts), normalize=True)
    with quiet():
        loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    theirs = loaded.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
    worst = float((ours * np.asarray(theirs)).sum(1).min())
    if worst < 1 - tolerance:
        raise TalasError(f"{folder} gives other vectors when loaded: smallest cosine {worst:.7f}")
    return worst


def model_card(
    *,
    name: str,
    teacher: str,
    student: str,
    method: str,
    corpus: str,
    pooling: str,
    scores: Mapping[str, Mapping[str, Any]],
) -> str:
    """README.md of a saved student. scores: task -> {metric, student, teacher, untrained} on a 0 to 100 scale."""
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, feature-extraction, distillation, talas]",
        "---",
        f"# {name}",
        "",
        f"A sentence encoder distilled with talas from `{teacher}` into `{student}` by {method}, on the corpus {corpus},",
        "without labels.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        f'model = SentenceTransformer("path/to/{name}")',
        'vectors = model.encode(["a first sentence", "a second one"])',
        "```",
        "",
        f"The vector is the {pooling} pooling of the last layer, not normalised; compare by cosine.",
        "",
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
