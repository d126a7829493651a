"""What stays behind the pooling of a student, as a module of its sentence-transformers folder, and back.

A linear layer is written as sentence-transformers' own Dense with the identity as activation and loads anywhere; a mixture of
experts as `Mixture` of this module, for which `talas_lib` has to be importable and `trust_remote_code=True` to be given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Dense, Module
from torch import Tensor, nn

from talas_lib.errors import TalasError, listed
from talas_lib.experts import MixtureOfExperts
from talas_lib.model_folders import modules_after_pooling


class Mixture(Module):
    """A mixture of experts on the sentence vector (see experts.MixtureOfExperts), as sentence-transformers calls it."""

    config_keys = ["dim", "hidden", "experts", "dropout"]  # noqa: RUF012 (a list in the base class)

    def __init__(self, dim: int, hidden: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.dim, self.hidden, self.experts, self.dropout = dim, hidden, experts, dropout
        with torch.random.fork_rng(devices=[]):  # these initial values are replaced by loading
            self.mixture = MixtureOfExperts(dim, hidden=hidden, experts=experts, dropout=dropout)

    @classmethod
    def of(cls, mixture: MixtureOfExperts) -> Mixture:
        """Around a trained mixture, whose tensors it shares."""
        first = mixture.router[0]
        assert isinstance(first, nn.Linear)
        made = cls(first.in_features, first.out_features, len(mixture.experts), mixture.dropout.p)
        made.mixture = mixture
        return made

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        features["sentence_embedding"] = self.mixture(features["sentence_embedding"])
        return features

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.dim

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        """config.json and model.safetensors, as every module of sentence-transformers."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *args: Any, **options: Any) -> Mixture:
        """Back from what `save` wrote."""
        made = super().load(model_name_or_path, subfolder, *args, **options)
        where = {k: options[k] for k in ("token", "cache_folder", "revision", "local_files_only") if k in options}
        return cls.load_torch_weights(model_name_or_path, subfolder, model=made, **where)


class _Activated(nn.Module):
    """A Dense module with an activation or a residual, `[n, dim] -> [n, d]`: of folders that others have made."""

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        vectors: Tensor = self.dense({self.dense.module_input_name: x})[self.dense.module_output_name]
        return vectors


def as_module(output: nn.Module) -> Module:
    """The sentence-transformers module that does what `output`, `[n, d_S] -> [n, d]`, does.

    A module with an attribute `linear` counts as that layer. TalasError for a kind that has no such form.
    """
    linear = output if isinstance(output, nn.Linear) else getattr(output, "linear", None)
    if isinstance(linear, nn.Linear):
        bias = None if linear.bias is None else linear.bias.detach().clone()
        dense = Dense(
            linear.in_features,
            linear.out_features,
            bias=bias is not None,
            activation_function=nn.Identity(),
            init_weight=linear.weight.detach().clone(),
            init_bias=bias,
        )
        return dense.requires_grad_(False)
    if isinstance(output, MixtureOfExperts):
        return Mixture.of(output)
    raise TalasError(
        f"a {type(output).__name__} behind the pooling cannot be written to a model folder. Accepted: nn.Linear, a module with"
        " an attribute `linear`, MixtureOfExperts; talas_lib/output_modules.py is the place for another kind"
    )


def read(folder: Path) -> nn.Module | None:
    """What a folder's modules after the pooling do to the vector, `[n, d_S] -> [n, d]`, in evaluation mode; None for nothing.

    Normalisation is not among it: whether vectors have length 1 is the reader's choice. TalasError for modules of a kind that
    is not known here, or with pickled weights.
    """
    found = [_read_one(folder, kind, path) for kind, path in modules_after_pooling(folder)]
    if not found:
        return None
    whole = found[0] if len(found) == 1 else nn.Sequential(*found)
    return whole.eval().requires_grad_(False)


def _read_one(folder: Path, kind: str, path: str) -> nn.Module:
    if kind not in ("Dense", "Mixture"):
        raise TalasError(
            f"{folder} has a module {kind!r} behind the pooling, which is not read here. Accepted: {listed(('Dense', 'Mixture'))}"
        )
    if not (folder / path / "model.safetensors").is_file():
        raise TalasError(f"{folder / path} has no model.safetensors. Pickled weights are not read; save it again")
    if kind == "Mixture":
        return Mixture.load(str(folder), subfolder=path, local_files_only=True).mixture
    dense = Dense.load(str(folder), subfolder=path, local_files_only=True)
    plain = isinstance(dense.activation_function, nn.Identity) and not dense.use_residual
    return dense.linear if plain else _Activated(dense)
