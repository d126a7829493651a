"""Linear layers whose first weights come from a given generator. Not a method: it has no file of values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def linear(
    inputs: int, outputs: int, *, generator: torch.Generator, bias: bool = True, std: float | None = None
) -> nn.Linear:
    """A linear layer `[n, inputs]` to `[n, outputs]` that leaves the global random state alone.

    std None: torch's own default, U(-b, b) with b = 1 / sqrt(inputs) for weight and bias; otherwise weights N(0, std^2) and a
    bias of zeros.
    """
    from torch import nn

    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    bound = 1 / math.sqrt(inputs)
    if std is None:
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        if bias:
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    else:
        nn.init.normal_(layer.weight, std=std, generator=generator)
        if bias:
            nn.init.zeros_(layer.bias)
    return layer
