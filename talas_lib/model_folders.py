"""Model folders in transformers or sentence-transformers form: where the model lies, how it pools, what it is by content.

Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talas_lib.cache_files import file_sha256
from talas_lib.errors import TalasError
from talas_lib.files import atomic_write_text

SUMS = "SHA256SUMS"
# what a tokenizer without tokenizer.json is made from
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "*.model")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "tokenizer.model")


def transformer_folder(folder: Path | str) -> Path:
    """The folder that holds config.json: the folder itself, or module 0 of a sentence-transformers folder.

    TalasError when there is none, or when the weights are not safetensors (pickled weights can run code and are refused).
    """
    folder = Path(folder).expanduser()
    first = next(iter(_modules(folder)), {"path": ""})["path"]
    folder = folder / first if first else folder
    if not (folder / "config.json").is_file():
        raise TalasError(
            f"{folder} holds no model: there is no config.json. Give a folder in transformers or sentence-transformers form"
        )
    if not list(folder.glob("*.safetensors")):
        raise TalasError(
            f"{folder} has no *.safetensors weights{_pickled(folder)}. Pickled weights can run code and are not read: load them"
            " where you trust them, and write them anew with save_pretrained()"
        )
    return folder


def check_tokenizer(folder: Path) -> None:
    """TalasError for a folder without a vocabulary, of which transformers would make a tokenizer that knows no word."""
    if not any(True for pattern in ("tokenizer.json", *_VOCABULARIES) for _ in folder.glob(pattern)):
        raise TalasError(
            f"{folder} has no tokenizer: there is no tokenizer.json, and none of {', '.join(_VOCABULARIES)}. Copy them from where"
            " the model comes from, or write them with the tokenizer's save_pretrained()"
        )


def _pickled(folder: Path) -> str:
    found = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    return f", but {found[0]}, which is a pickle" if found else ""


def check_kind(folder: Path | str) -> None:
    """What can be told without loading anything: TalasError for a folder that holds no text encoder with safetensors weights."""
    folder = transformer_folder(folder)
    config = _json(folder / "config.json", dict)
    if not isinstance(config.get("model_type"), str):
        raise TalasError(
            f"{folder / 'config.json'} names no model_type, such as bert; give a folder that save_pretrained() wrote"
        )
    if config.get("is_encoder_decoder"):
        raise TalasError(
            f"{folder} holds an encoder with a decoder ({config['model_type']!r}), which gives no sentence vector by itself;"
            " save its encoder alone, or take another model"
        )
    check_tokenizer(folder)


def _json(file: Path, kind: type[Any]) -> Any:
    """The content of a JSON file. TalasError names a file that holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TalasError(f"{file} is not readable as JSON ({error}); get the folder anew") from None
    if not isinstance(found, kind):
        raise TalasError(
            f"{file} is JSON of another kind: {type(found).__name__}, expected {kind.__name__}; get the folder anew"
        )
    return found


def pooling_of_folder(folder: Path | str) -> str | None:
    """cls, mean or last as a sentence-transformers folder declares it; None when it does not say."""
    for config in sorted(Path(folder).expanduser().glob("*_Pooling/config.json")):
        declared = _json(config, dict)
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
    """The modules a sentence-transformers folder lists, with `type` and `path`; TalasError for paths that lead out of it."""
    folder = Path(folder).expanduser()
    file = folder / "modules.json"
    if not file.is_file():
        return []
    found = []
    for module in _json(file, list):
        path = module.get("path", "") if isinstance(module, dict) else None
        if not isinstance(path, str) or not isinstance(module.get("type"), str):
            raise TalasError(
                f"{file} is JSON of another kind: every module has a `type` and a `path`; get the folder anew"
            )
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise TalasError(f"{file} names the module {path!r}, which lies outside of {folder}; get the folder anew")
        found.append({**module, "path": path})
    return found


def folder_fingerprint(folder: Path | str) -> dict[str, str]:
    """sha256 of the weights, of the configuration and of the tokenizer files of a model folder, and of the modules after
    the pooling where there are any.
    """
    whole, folder = Path(folder).expanduser(), transformer_folder(folder)
    tokenizer = [folder / n for n in TOKENIZER_FILES if (folder / n).is_file()]
    if folder / "tokenizer.json" not in tokenizer:
        tokenizer = sorted({*tokenizer, *(file for pattern in _VOCABULARIES for file in folder.glob(pattern))})
    found = {
        "weights": _sha256(sorted(folder.glob("*.safetensors"))),
        "config": _sha256([folder / "config.json"]),
        "tokenizer": _sha256(tokenizer),
    }
    after = [file for _, path in modules_after_pooling(whole) for file in sorted((whole / path).iterdir())]
    return found | {"output": _sha256(after)} if after else found


def write_sums(folder: Path) -> None:
    """A line `<sha256>  <path>` for every file of a finished folder but its README, as `sha256sum --check` reads them."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name not in ("README.md", SUMS))
    lines = [f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    atomic_write_text(folder / SUMS, "".join(lines))


def check_sums(folder: Path) -> None:
    """TalasError names the first file that is not what `write_sums` saw, and the way out; a folder without sums is taken as it
    is."""
    if not (folder / SUMS).is_file():
        return
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        file = folder / name
        if not file.is_file() or file_sha256(file) != expected:
            raise TalasError(
                f"{file} is damaged, changed or missing: its content is not the one noted in {SUMS}. Make the folder {folder}"
                f" again, or remove {SUMS} if the change is yours"
            )


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
