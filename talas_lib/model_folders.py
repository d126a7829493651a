"""Model folders in transformers or sentence-transformers form: where the model lies, how it pools, what it is by content.

Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from talas_lib.errors import TalasError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "tokenizer.model")


def transformer_folder(folder: Path | str) -> Path:
    """The folder that holds config.json: the folder itself, or module 0 of a sentence-transformers folder.

    TalasError when there is none, or when the weights are not safetensors (pickled weights can run code and are refused).
    """
    folder = Path(folder).expanduser()
    modules = folder / "modules.json"
    if modules.is_file():
        first = json.loads(modules.read_text())[0].get("path", "")
        folder = folder / first if first else folder
    if not (folder / "config.json").is_file():
        raise TalasError(
            f"{folder} holds no model: there is no config.json. Give a folder in transformers or sentence-transformers form"
        )
    if not list(folder.glob("*.safetensors")):
        raise TalasError(
            f"{folder} has no *.safetensors weights. Pickled weights are not read; convert them with save_pretrained()"
        )
    return folder


def pooling_of_folder(folder: Path | str) -> str | None:
    """cls, mean or last as a sentence-transformers folder declares it; None when it does not say."""
    for config in sorted(Path(folder).expanduser().glob("*_Pooling/config.json")):
        declared = json.loads(config.read_text())
        if declared.get("pooling_mode") in ("cls", "mean"):
            return str(declared["pooling_mode"])
        if declared.get("pooling_mode") == "lasttoken":
            return "last"
        names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
        chosen = [ours for key, ours in names.items() if declared.get(key)]
        if len(chosen) == 1:
            return chosen[0]
    return None


def modules_after_pooling(folder: Path | str) -> list[tuple[str, str]]:
    """(kind, subfolder) of what a sentence-transformers folder does to the vector after pooling, in order.

    Normalize and Dropout are left out: the one is a choice of the reader, the other does nothing in evaluation.
    """
    found = [(module["type"].rpartition(".")[2], module["path"]) for module in _modules(folder)[1:]]
    return [(kind, path) for kind, path in found if kind not in ("Pooling", "Normalize", "Dropout")]


def needs_talas(folder: Path | str) -> bool:
    """Whether SentenceTransformer loads the folder only where talas_lib can be imported, with `trust_remote_code=True`."""
    return any(module["type"].startswith("talas_lib.") for module in _modules(folder))


def _modules(folder: Path | str) -> list[dict[str, str]]:
    file = Path(folder).expanduser() / "modules.json"
    return json.loads(file.read_text()) if file.is_file() else []


def folder_fingerprint(folder: Path | str) -> dict[str, str]:
    """sha256 of the weights, of the configuration and of the tokenizer files of a model folder, and of the modules after
    the pooling where there are any.
    """
    whole, folder = Path(folder).expanduser(), transformer_folder(folder)
    tokenizer = [folder / n for n in TOKENIZER_FILES if (folder / n).is_file()]
    found = {
        "weights": _sha256(sorted(folder.glob("*.safetensors"))),
        "config": _sha256([folder / "config.json"]),
        "tokenizer": _sha256(tokenizer),
    }
    after = [file for _, path in modules_after_pooling(whole) for file in sorted((whole / path).iterdir())]
    return found | {"output": _sha256(after)} if after else found


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
