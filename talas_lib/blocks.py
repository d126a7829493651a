"""The transformer blocks of a model: finding them, keeping some, and computing the last one at a single token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from talas_lib.errors import TalasError
from talas_lib.packed import Layout, first_token_attention


def blocks(model: Any) -> nn.ModuleList:
    """The blocks in order. TalasError for a model that keeps them in no known place."""
    parent, name = _parent(model)
    return getattr(parent, name)


def is_bert_like(model: Any) -> bool:
    """BERT, XLM-R, MPNet and their kin, which keep blocks in `encoder.layer`."""
    return hasattr(model, "encoder") and hasattr(model.encoder, "layer")


def uses_sliding_window(config: Any) -> bool:
    """Whether some block attends to a window only."""
    return any("sliding" in kind for kind in getattr(config, "layer_types", None) or [])


def keep_layers(model: Any, layers: Sequence[int]) -> None:
    """Cut a model down to the given blocks, in place. TalasError when an index does not exist."""
    there = blocks(model)
    check_layers(layers, len(there))
    kept = nn.ModuleList([there[i] for i in layers])
    for number, block in enumerate(kept):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", number)  # noqa: B010 (no declared attribute)
    parent, name = _parent(model)
    setattr(parent, name, kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in layers]


def check_layers(layers: Sequence[int], count: int) -> None:
    """TalasError when a model with `count` blocks does not have all of these, or when there are none."""
    if not layers or not all(0 <= i < count for i in layers):
        raise TalasError(f"layers {list(layers)} of a model with {count} blocks: choose from 0 to {count - 1}")


def _parent(model: Any) -> tuple[Any, str]:
    if is_bert_like(model):
        return model.encoder, "layer"
    if hasattr(model, "layers"):
        return model, "layers"
    raise TalasError(
        f"{type(model).__name__} keeps its blocks neither in encoder.layer nor in layers; it is not supported"
    )


def has_bert_blocks(model: Any) -> bool:
    """Whether `first_token_states` knows these blocks: BERT's, which RoBERTa and XLM-R share, without a decoder's parts."""
    if not is_bert_like(model) or not len(model.encoder.layer):
        return False
    block = model.encoder.layer[-1]
    parts = ("query", "key", "value")
    attention = getattr(getattr(block, "attention", None), "self", None)
    return all(hasattr(attention, part) for part in parts) and not getattr(block, "is_decoder", True)


def first_token_states(model: Any, ids: Tensor, positions: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """Hidden states of a packed batch, the last block's at the first token of each sentence only.

    L tensors `[T, dim]` and one `[B, dim]`: what CLS pooling reads, with the values that the whole last block gives. That
    block then costs its key and value products alone, a sixth of its work. ids, positions: int64 `[T]`.
    """
    hidden = model.embeddings(input_ids=ids[None], position_ids=positions[None])
    states = [hidden[0]]
    for block in model.encoder.layer[:-1]:
        hidden = block(hidden, layout=layout)
        states.append(hidden[0])
    return (*states, _block_at_first_token(model.encoder.layer[-1], hidden[0], layout))


def _block_at_first_token(block: Any, hidden: Tensor, layout: Layout) -> Tensor:
    attend = block.attention.self
    first = hidden.index_select(0, layout.starts)
    shape = (-1, attend.num_attention_heads, attend.attention_head_size)
    query, key, value = (
        attend.query(first).view(shape),
        attend.key(hidden).view(shape),
        attend.value(hidden).view(shape),
    )
    dropout = attend.dropout.p if attend.training else 0.0
    context = first_token_attention(query, key, value, layout, dropout, attend.scaling)
    attended = block.attention.output(context.flatten(1), first)
    return block.output(block.intermediate(attended), attended)
