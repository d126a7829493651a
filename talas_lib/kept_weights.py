"""Weights of a run kept after chosen epochs: `epochs/<n>/weights.safetensors`, student and heads, whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from talas_lib.errors import TalasError, listed
from talas_lib.files import replacing

_FILE = "weights.safetensors"


def file_of(folder: Path, epoch: int) -> Path:
    """Where a run's folder keeps the weights of an epoch."""
    return folder / "epochs" / str(epoch) / _FILE


def kept_epochs(folder: Path) -> list[int]:
    """Epochs whose weights a run's folder holds, in order."""
    found = (file.parent.name for file in folder.glob(f"epochs/*/{_FILE}"))
    return sorted(int(name) for name in found if name.isdigit())


def save(folder: Path, epoch: int, states: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write the weights of an epoch in one move; returns the file. states: a state dict by name, such as student and heads."""
    file = file_of(folder, epoch)
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous() for name, s in states.items() for key, value in s.items()
    }
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={"epoch": str(epoch)})
    return file


def load(folder: Path, epoch: int, modules: Mapping[str, nn.Module]) -> None:
    """Put the weights of an epoch into the modules, by the names they were saved under.

    TalasError when the epoch was not kept or its file is damaged.
    """
    file = file_of(folder, epoch)
    if not file.is_file():
        there = [str(n) for n in kept_epochs(folder)]
        raise TalasError(
            f"{folder.name} holds no weights of epoch {epoch}; there are: {listed(there)}, and those of the last epoch."
            " They are kept while a run trains: give 03_train keep_epochs, such as -y 'keep_epochs: [1, 3]'"
        )
    try:
        with safe_open(file, framework="pt") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
        for name, module in modules.items():
            prefix = f"{name}."
            module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    except (SafetensorError, OSError, RuntimeError) as error:
        raise TalasError(f"{file} cannot be read ({error}); move {folder} away and train it again") from error
