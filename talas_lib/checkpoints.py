"""Training state on disk: one safetensors file, replaced atomically, from which training goes on to the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from talas_lib.errors import TalasError
from talas_lib.files import replacing


def save(
    file: Path,
    *,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights, optimizer state and random state after `step` finished steps. A reader sees the old file or the new one.

    extra: further tensors, which `load` gives back.
    """
    tensors: dict[str, Tensor] = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, module in modules.items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    tensors |= {f"extra.{key}": value for key, value in (extra or {}).items()}
    tensors = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    meta = {"step": str(step), "settings": json.dumps(settings, sort_keys=True), "content": _content(tensors)}
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata=meta)


def load(
    file: Path, *, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> tuple[int, dict[str, Tensor]]:
    """Put everything back; return the number of finished steps and the extra tensors.

    TalasError when the file is damaged or belongs to other settings, saying which.
    """
    try:
        with safe_open(file, framework="pt") as stream:
            meta = stream.metadata()
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise TalasError(f"checkpoint {file} cannot be read ({error}); delete it to start this run again") from error
    if meta.get("content") != _content(tensors):
        raise TalasError(
            f"checkpoint {file} is damaged: its content does not match its hash; delete it to start this run again"
        )
    if meta["settings"] != json.dumps(settings, sort_keys=True):
        raise TalasError(f"checkpoint {file} was made with other settings; delete it to start this run again")
    for name, module in modules.items():
        prefix = f"{name}."
        module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    fused = {id(p) for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
    for number, parameter in enumerate(_parameters(optimizer)):
        prefix = f"optimizer.{number}."
        state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        if state:
            # `step` stays where the optimizer keeps it: with the parameter where the update is fused, else on the CPU
            here = id(parameter) in fused
            optimizer.state[parameter] = {
                k: v if k == "step" and not here else v.to(parameter.device) for k, v in state.items()
            }
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    extra = {key.removeprefix("extra."): value for key, value in tensors.items() if key.startswith("extra.")}
    return int(meta["step"]), extra


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _content(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].reshape(-1).cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def finished_steps(file: Path) -> int:
    """Steps that a checkpoint has behind it; 0 without a readable one."""
    if not file.is_file():
        return 0
    try:
        with safe_open(file, framework="pt") as stream:
            return int(stream.metadata()["step"])
    except (SafetensorError, OSError):
        return 0
