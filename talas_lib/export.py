"""A trained student as a folder that sentence-transformers and transformers load, with the heads beside it, and whether its
vectors are the same wherever it is loaded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import model_folders
from talas_lib.errors import TalasError

if TYPE_CHECKING:
    from torch import nn

    from talas_lib.encoders import Encoder
    from talas_lib.static_encoder import StaticEncoder

HEADS_FILE = "talas_heads.safetensors"


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
        model_folders.write_sums(staging)
        replace_folder(staging, folder)
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

    TalasError as `check_equal` raises it.
    """
    ours = student.encode(list(texts), normalize=False)
    return check_equal(ours, by_sentence_transformers(folder, texts), f"{folder} gives", tolerance=tolerance)


def check_equal(ours: np.ndarray, theirs: np.ndarray, who: str, *, tolerance: float = 1e-5) -> float:
    """Smallest cosine between the rows of two sets of vectors `[n, d]`.

    TalasError, which begins with `who`, below 1 - tolerance, and for vectors of another width or length (relative difference
    above 1e-3).
    """
    if ours.shape != theirs.shape:
        raise TalasError(f"{who} vectors of {theirs.shape[1]} numbers when loaded, not {ours.shape[1]}")
    lengths = [np.linalg.norm(vectors, axis=1) for vectors in (ours, theirs)]
    worst = float(((ours * theirs).sum(1) / (lengths[0] * lengths[1])).min())
    longer = float(np.abs(lengths[1] / lengths[0] - 1).max())
    if worst < 1 - tolerance or longer > 1e-3:
        raise TalasError(
            f"{who} other vectors when loaded: smallest cosine {worst:.7f}, lengths differ by up to {longer:.1e}"
        )
    return worst


def by_sentence_transformers(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Vectors `[texts, d]` of SentenceTransformer(folder), as they come."""
    from sentence_transformers import SentenceTransformer

    from talas_lib.encoders import quiet

    with quiet():
        trusted = model_folders.needs_talas(folder)  # the folder is ours, and so is the module it names
        loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=trusted)
    return np.asarray(loaded.encode(list(texts), normalize_embeddings=False, show_progress_bar=False))


def by_transformers(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Vectors `[texts, d]` from AutoModel, AutoTokenizer and a pooling written out, without sentence-transformers' pipeline.

    Not for a static encoder, which has no transformer: TalasError.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from talas_lib import output_modules
    from talas_lib.encoders import quiet

    inner = model_folders.transformer_folder(folder)
    pooling = model_folders.pooling_of_folder(folder)
    with quiet(), torch.no_grad():
        tokenizer, model = AutoTokenizer.from_pretrained(inner), AutoModel.from_pretrained(inner, dtype=torch.float32)
        tokens = tokenizer(list(texts), padding=True, truncation=True, padding_side="right", return_tensors="pt")
        states = model.eval()(**tokens).last_hidden_state
        mask = tokens["attention_mask"]
        if pooling == "mean":
            vectors = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            place = mask.sum(1) - 1 if pooling == "last" else torch.zeros_like(mask[:, 0])
            vectors = states[torch.arange(len(states)), place]
        behind = output_modules.read(folder)
        return np.asarray(vectors if behind is None else behind(vectors))


def _pooling_mode(pooling: str) -> str:
    return {"last": "lasttoken"}.get(pooling, pooling)


def replace_folder(staging: Path, folder: Path) -> None:
    """Put a finished copy in the place of a folder by renames, readable by all as other files are. Where that fails, the folder
    is back in its place."""
    os.chmod(staging, 0o755)
    for file in staging.rglob("*.safetensors"):
        file.chmod(0o644)  # written through a temporary file that only its owner may read
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        try:
            os.replace(folder, old / "was")
            try:
                os.replace(staging, folder)
            except OSError:
                os.replace(old / "was", folder)
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, folder)
