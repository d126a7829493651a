"""The model and the tokenizer of a folder, opened by transformers, or refused with the reason; no code from the folder is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from talas_lib.errors import TalasError
from talas_lib.model_folders import check_tokenizer


def read_model(folder: Path) -> Any:
    """The base model of a folder, in fp32. TalasError as in Encoder.load."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    try:
        with quiet():
            model, report = AutoModel.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        weights = ", ".join(sorted(file.name for file in folder.glob("*.safetensors")))
        raise TalasError(
            f"{folder} with model_type {kind!r} and {weights} cannot be opened as a text encoder:"
            f" {' '.join(str(error).split())[:300]}. Code from a model folder is not run; get the folder anew, or take a model"
            " that transformers knows"
        ) from error
    missing = [*(key for key in report["missing_keys"] if "pooler" not in key), *report["mismatched_keys"]]
    if missing:
        shown = ", ".join(sorted(map(str, missing))[:3])
        raise TalasError(
            f"{folder}: model.safetensors lacks {len(missing)} weights of a {kind!r} model, or has them in another size ({shown},"
            " ...); they would be random. Get the folder anew"
        )
    return model


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; no code from it is run. TalasError names a folder without one, or with a damaged one."""
    check_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise TalasError(
            f"the tokenizer in {folder} cannot be opened: {' '.join(str(error).split())[:300]}. Get the folder anew, with"
            " tokenizer.json or the files of its vocabulary"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars for loading and saving weights, which take a moment and clutter a notebook."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
