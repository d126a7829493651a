"""A model folder as an ONNX file, and the same in 8 bits: written with torch.onnx, run with ONNX Runtime alone.

The graph takes `input_ids` and `attention_mask`, both int64 `[batch, sequence]` padded on the right, and gives
`last_hidden_state` `[batch, sequence, d]` and `sentence_embedding` `[batch, dim]`: pooled, and put through what the folder has
behind its pooling. It is traced from the model that transformers loads, so any folder in sentence-transformers form will do.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import model_folders
from talas_lib.errors import TalasError, listed

if TYPE_CHECKING:
    from torch import nn

ONNX_FOLDER, MODEL, INT8 = "onnx", "model.onnx", "model_int8.onnx"
OPSET = 18
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Encode = Callable[[Sequence[str]], np.ndarray]


def require() -> None:
    """TalasError with the way out when a package that export or run needs is not installed."""
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise TalasError(
            f"ONNX needs {listed(missing)}, not installed here. `make setup` installs what requirements.lock names;"
            f" by hand: `pip install {' '.join(missing)}`"
        )


# ---- writing


def export_onnx(folder: Path, *, pooling: str | None = None) -> Path:
    """Write `<folder>/onnx/model.onnx` from a sentence-transformers folder, in one move; returns the file.

    pooling: cls, mean or last, None for what the folder says. TalasError for a static encoder (it has no transformer: its table
    is its model) and for a folder that says nothing.
    """
    import torch

    require()
    if is_static(folder):
        raise TalasError(
            f"{folder} holds a static encoder: a table that is read and averaged. There is no transformer to export"
        )
    model = sentence_graph(folder, pooling)
    ids = torch.ones(2, 9, dtype=torch.int64)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    target = folder / ONNX_FOLDER / MODEL
    with _staged(target) as staging, _calm():
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            staging,
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state", "sentence_embedding"],
            dynamic_shapes=({0: batch, 1: sequence}, {0: batch, 1: sequence}),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=True,
            verbose=False,
        )
    return target


def is_static(folder: Path) -> bool:
    """Whether a folder's first module is a table of token vectors."""
    listing = folder / "modules.json"
    modules = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else []
    return bool(modules) and str(modules[0]["type"]).endswith("StaticEmbedding")


def sentence_graph(folder: Path, pooling: str | None = None) -> nn.Module:
    """The model of a folder as one module: ids and mask `[B, L]` to token states `[B, L, d]` and sentence vectors `[B, dim]`."""
    import torch
    from torch import Tensor, nn
    from transformers import AutoModel

    from talas_lib import output_modules
    from talas_lib.encoders import quiet

    chosen = pooling or _declared_pooling(folder)
    with quiet():
        body = AutoModel.from_pretrained(
            model_folders.transformer_folder(folder), dtype=torch.float32, attn_implementation="eager"
        )

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.behind = body, output_modules.read(folder)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            states = self.body(input_ids=input_ids, attention_mask=attention_mask)[0]
            vectors = pool_padded(states, attention_mask, chosen)
            return states, vectors if self.behind is None else self.behind(vectors)

    return Graph().eval().requires_grad_(False)


def _declared_pooling(folder: Path) -> str:
    found = model_folders.pooling_of_folder(folder)
    if found is None:
        raise TalasError(f"{folder} does not say how it pools. Accepted: pooling cls, mean or last")
    return found


def pool_padded(states: Any, mask: Any, pooling: str) -> Any:
    """Sentence vectors `[B, d]` of token states `[B, L, d]` padded on the right; mask `[B, L]` is 1 where there is a token."""
    if pooling == "cls":
        return states[:, 0]
    weights = mask.to(states.dtype).unsqueeze(-1)
    if pooling == "mean":
        return (states * weights).sum(1) / weights.sum(1)
    # a gather by position would tie the graph to one size of batch
    is_last = (mask.cumsum(1) == mask.sum(1, keepdim=True)) & (mask > 0)
    return (states * is_last.to(states.dtype).unsqueeze(-1)).sum(1)


def quantize(source: Path, target: Path | None = None) -> Path:
    """Weights of matrix products and of the token table in 8 bits, activations quantised as they come; returns the new file.

    Dynamic quantisation by ONNX Runtime, one scale a column, weights in 7 of the 8 bits: on processors without 8-bit dot products
    the full range overflows in the middle of a sum.
    """
    require()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = target or source.with_name(INT8)
    graph = onnx.load(source)
    del graph.graph.value_info[:]  # shapes noted by torch, some of which onnx takes for wrong; it finds them again
    with _staged(target) as staging, _calm():
        quantize_dynamic(graph, staging, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    return target


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A path in a folder of its own to write to; what lies there afterwards becomes `target` by a rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging / target.name
        (staging / target.name).replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Without the exporters' warnings about their own code and their log lines, none of which a user can act on."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---- running


class OnnxEncoder:
    """Texts to vectors with ONNX Runtime and the folder's tokenizer: neither torch nor transformers is used.

    file: the graph, below `<folder>/onnx`. threads: None for the runtime's choice. max_length: tokens kept, None for what the
    folder says. TalasError when graph or tokenizer is missing.
    """

    def __init__(
        self, folder: Path, file: str = MODEL, *, threads: int | None = None, max_length: int | None = None
    ) -> None:
        require()
        import onnxruntime
        from tokenizers import Tokenizer

        graph, tokens = folder / ONNX_FOLDER / file, folder / "tokenizer.json"
        for needed in (graph, tokens):
            if not needed.is_file():
                raise TalasError(f"{folder} has no {needed.relative_to(folder)}; notebooks/09_export.ipynb writes it")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(tokens))
        self.tokenizer.enable_truncation(max_length or _max_length(folder))
        self.tokenizer.enable_padding(**_padding(folder))

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Sentence vectors, float32 `[texts, dim]`, not normalised; sentences of similar length go together."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens = self.tokenizer.encode_batch([texts[i] for i in rows])
            inputs = {
                "input_ids": np.array([t.ids for t in tokens], dtype=np.int64),
                "attention_mask": np.array([t.attention_mask for t in tokens], dtype=np.int64),
            }
            found |= zip(rows, self.session.run(["sentence_embedding"], inputs)[0], strict=True)
        return np.stack([found[i] for i in range(len(texts))])


def _max_length(folder: Path) -> int:
    """Tokens that sentence-transformers would keep."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        file = folder / name
        value = json.loads(file.read_text(encoding="utf-8")).get(key) if file.is_file() else None
        if value is not None and value < 1_000_000:  # a tokenizer without limit names a huge number
            return int(value)
    return 512


def _padding(folder: Path) -> dict[str, Any]:
    """The padding token, on the right, where the graph expects it. The mask hides it, so that its id changes nothing."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {"direction": "right", "pad_id": int(config.get("pad_token_id") or 0)}


# ---- checking and timing


def parity(reference: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    """How far vectors `[n, d]` are from the reference: cosines (mean and smallest), lengths (largest relative difference), and
    agreement as `agreement` counts it (order of pairs; of 10 neighbours, where there are enough texts), 0 to 100.

    ValueError for other shapes.
    """
    from talas_lib import agreement

    if reference.shape != vectors.shape:
        raise ValueError(f"vectors {vectors.shape} cannot be compared with {reference.shape}")
    cosines = (agreement.unit(reference) * agreement.unit(vectors)).sum(1)
    lengths = [np.linalg.norm(v, axis=1) for v in (reference, vectors)]
    found = {
        "cosine": float(cosines.mean()),
        "smallest_cosine": float(cosines.min()),
        "length_difference": float(np.abs(lengths[1] / lengths[0] - 1).max()),
    }
    few = slice(agreement.PAIR_TEXTS)
    if len(reference) >= 3:
        found["pair_spearman"] = 100 * agreement.pair_spearman(reference[few], vectors[few])[0]
    if len(reference) > agreement.DEPTH + 1:
        found["overlap_at_10"] = 100 * float(agreement.neighbour_overlap(reference, vectors).mean())
    return found


def speeds(encoders: Mapping[str, Encode], texts: Sequence[str], *, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Each encoder's milliseconds a sentence, one by one and all together: medians over rounds in which they take turns.

    Taking turns spreads a change of the machine's speed over all of them. The first round warms up and does not count.
    """
    alone = texts[: min(len(texts), 16)]
    taken: dict[str, dict[str, list[float]]] = {name: {"one": [], "many": []} for name in encoders}
    for number in range(rounds + 1):
        for name, encode in encoders.items():
            began = time.perf_counter()
            for text in alone:
                encode([text])
            between = time.perf_counter()
            encode(texts)
            if number:
                taken[name]["one"].append(1e3 * (between - began) / len(alone))
                taken[name]["many"].append(1e3 * (time.perf_counter() - between) / len(texts))
    return {
        name: {f"ms_{how}": float(np.median(values)) for how, values in rows.items()} for name, rows in taken.items()
    }
