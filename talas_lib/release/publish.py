"""A finished run's student as a folder to give away: sentence-transformers form, ONNX, ONNX in 8 bits, and a complete card.

`outputs/<run>/export` is a copy of the run's `model` without the heads of training. What was measured of it is the run's record
`export`, which the model card reads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import agreement, export, model_folders, runs, stages
from talas_lib.errors import TalasError
from talas_lib.release import model_card, onnx_files
from talas_lib.texts import distinct, hash_order

if TYPE_CHECKING:
    from talas_lib.encoders import Encoder
    from talas_lib.reduction import Components

FORMS = {"fp32": onnx_files.MODEL, "int8": onnx_files.INT8}
FIT, COMPARED = 5_000, 1_000


@dataclass
class Export:
    """A run's student, its folder to give away, and texts to compare on. new: whether the run has not trained on them.

    dim: numbers of the exported vector, the student's principal directions; None for the student's own vector.
    """

    run: runs.Run
    folder: Path
    texts: tuple[str, ...]
    new: bool
    dim: int | None = None

    @cached_property
    def student(self) -> Encoder:
        """As training left it, on the CPU."""
        return stages.load_run_student(self.run).to("cpu")

    @cached_property
    def whole(self) -> np.ndarray:
        """The student's own vectors of the texts, `[texts, d]`."""
        return self.student.encode(list(self.texts), normalize=False)

    @cached_property
    def directions(self) -> Components:
        """Mean and principal directions of the student's vectors of its training sentences."""
        from talas_lib.reduction import principal_components

        training = hash_order(dict.fromkeys(stages.load_corpus(self.run.params).texts), "fit")[:FIT]
        return principal_components(self.student.encode(training, normalize=False), self.student.output_dim)

    def shorten(self, vectors: np.ndarray, width: int) -> np.ndarray:
        """Vectors `[n, d]` centred and rotated onto the first `width` principal directions, float32 `[n, width]`."""
        return ((vectors - self.directions.mean) @ self.directions.directions[:, :width]).astype(np.float32)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """What every form of the export has to give, `[texts, dim]`."""
        vectors = self.student.encode(list(texts), normalize=False)
        return vectors if self.dim is None else self.shorten(vectors, self.dim)

    @cached_property
    def vectors(self) -> np.ndarray:
        """`encode` of the texts."""
        return self.whole if self.dim is None else self.shorten(self.whole, self.dim)

    @property
    def kind(self) -> str:
        """What the texts are, in words."""
        return "not trained on" if self.new else "of the training corpus"

    @property
    def static(self) -> bool:
        return onnx_files.is_static(self.folder)


def export_run(run: runs.Run, *, unseen: str | None = None, dim: int | None = None) -> Export:
    """Write `outputs/<run>/export` anew, in one move.

    unseen: see agreement.unseen_texts; where there are too few such texts, texts of the training corpus are compared on. dim:
    see Export; a linear layer behind the pooling is added for it. TalasError when the run has not finished, the packages for
    ONNX are missing or dim is too large; nothing is written then.
    """
    if run.status != "finished":
        raise TalasError(f"run {run.id} has not finished training; run notebooks/03_train.ipynb with its parameters")
    onnx_files.require()
    e = Export(run, run.folder / "export", *_texts(run, unseen), dim)
    staging = Path(tempfile.mkdtemp(prefix=".export.", dir=run.folder))
    try:
        inner = staging / "model"
        shutil.copytree(run.folder / "model", inner, ignore=shutil.ignore_patterns(export.HEADS_FILE))
        if dim is not None:
            inner = _with_directions(e, inner, staging / "shorter", dim)
        if not onnx_files.is_static(inner):
            onnx_files.quantize(onnx_files.export_onnx(inner))
        export.replace_folder(inner, e.folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return e


def _with_directions(e: Export, source: Path, target: Path, dim: int) -> Path:
    """The model folder with a linear layer at its end that does what `Export.shorten` does; returns `target`."""
    import torch
    from sentence_transformers import SentenceTransformer

    from talas_lib import output_modules
    from talas_lib.encoders import quiet

    width, there = e.student.output_dim, e.directions.directions.shape[1]
    if dim > there:
        raise TalasError(
            f"dim is {dim}, and the student's vectors have {width} numbers and {there} directions in which they vary."
            f" Accepted: up to {there}, or None for the vectors as they are"
        )
    matrix = torch.from_numpy(e.directions.directions[:, :dim])
    linear = torch.nn.Linear(width, dim)
    with torch.no_grad():
        linear.weight.copy_(matrix.T)
        linear.bias.copy_(-torch.from_numpy(e.directions.mean) @ matrix)
    with quiet():
        trusted = model_folders.needs_talas(source)
        model = SentenceTransformer(str(source), device="cpu", local_files_only=True, trust_remote_code=trusted)
        model.append(output_modules.as_module(linear))
        model.save_pretrained(str(target), create_model_card=False)
    return target


def _texts(run: runs.Run, unseen: str | None) -> tuple[tuple[str, ...], bool]:
    """Texts to compare on, and whether the run has not trained on them."""
    try:
        found, new = agreement.unseen_texts(run, unseen), True
    except TalasError:
        if unseen is not None:
            raise
        found, new = tuple(distinct(stages.load_corpus(run.params).texts)), False
    return tuple(hash_order(found, "agreement")[:COMPARED]), new


def check_loads(e: Export, count: int = 64) -> dict[str, float]:
    """Smallest cosine between the student's vectors and those of the folder in sentence-transformers, in plain transformers and
    in ONNX Runtime, on some of the texts.

    TalasError where one of them gives other vectors. A static encoder is loaded by sentence-transformers alone.
    """
    texts, ours = list(e.texts[:count]), e.vectors[:count]
    loaders = {"sentence-transformers": export.by_sentence_transformers}
    if not e.static:
        loaders |= {"transformers": export.by_transformers, "ONNX Runtime": _by_onnx_runtime}
    return {
        name: export.check_equal(ours, load(e.folder, texts), f"{e.folder} in {name} gives")
        for name, load in loaders.items()
    }


def _by_onnx_runtime(folder: Path, texts: Sequence[str]) -> np.ndarray:
    return onnx_files.OnnxEncoder(folder).encode(texts)


def forms(e: Export, *, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Size, parity with the student and speed of every form of the model, by name; the student in torch is the first.

    Speed is measured on up to 128 of the texts, the forms in turn, with torch's number of threads for all.
    """
    import torch

    threads = torch.get_num_threads()
    encoders: dict[str, onnx_files.Encode] = {"torch": e.encode}
    sizes = {"torch": _megabytes([*e.folder.glob("*.safetensors"), *e.folder.glob("[0-9]*/*.safetensors")])}
    for name, file in FORMS.items() if not e.static else ():
        encoders[f"ONNX {name}"] = onnx_files.OnnxEncoder(e.folder, file, threads=threads).encode
        sizes[f"ONNX {name}"] = _megabytes([e.folder / onnx_files.ONNX_FOLDER / file])
    taken = onnx_files.speeds(encoders, e.texts[:128], rounds=rounds)
    vectors = {name: e.vectors if name == "torch" else encode(e.texts) for name, encode in encoders.items()}
    return {
        name: {"size_mb": sizes[name], **onnx_files.parity(e.vectors, vectors[name]), **taken[name]}
        for name in encoders
    }


def _megabytes(files: Sequence[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 1e6


# ---- the record


def finish(
    e: Export, loads: dict[str, float], found: dict[str, dict[str, float]], rows: Sequence[dict[str, Any]]
) -> Path:
    """Record the export and write the card into its folder and the run's; returns the folder.

    loads: of `check_loads`; found: of `forms`; rows: of shorter_vectors.width_curve.
    """
    import torch

    record = {
        "dim": e.dim,
        "loads": loads,
        "forms": found,
        "widths": list(rows),
        "texts": len(e.texts),
        "kind": e.kind,
        "threads": torch.get_num_threads(),
    }
    e.run.write_record("export", record)
    model_card.write(e.run)
    return e.folder


def loading_lines(folder: str, needs_talas: bool, static: bool) -> str:
    """How the folder is loaded, for each of the ways it can be."""
    trust = ", trust_remote_code=True" if needs_talas else ""
    lines = [
        "from sentence_transformers import SentenceTransformer",
        f'SentenceTransformer("{folder}"{trust}).encode(["a sentence"])',
    ]
    if not static:
        lines += [
            "# ONNX Runtime alone, see talas_lib/release/onnx_files.py:",
            "from pathlib import Path",
            "from talas_lib.release.onnx_files import OnnxEncoder",
            f'OnnxEncoder(Path("{folder}"), "{onnx_files.INT8}").encode(["a sentence"])',
        ]
    return "\n".join(lines)


def trusted(folder: Path) -> bool:
    """Whether the folder needs talas_lib and trust_remote_code to load."""
    return model_folders.needs_talas(folder)
