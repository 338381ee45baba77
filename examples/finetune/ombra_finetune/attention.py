"""Attention of private layers: merged heads, pruned heads and 2ReLU, for every decoder of transformers.

Models hand rotated queries, and keys and values as the cache keeps them, to a function that is registered by name. The one
here computes what `ombra merge-heads` writes into an ONNX file, so a student and its merged export mean the same:

    scores(group) = (side by side q_i) . (side by side k_i) * scale / sqrt(m)        for the m heads of a group
    output(group) = softmax(scores(group) + mask) . (side by side v_i)

Parameters, outputs and the cache keep their shapes and their order of heads. Source: MARILL (arXiv 2408.03561), section 5.3.
An attribute `ombra_gate` of a module, a number for each head, weighs what its heads give while heads are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "ombra"
"""Name under which transformers finds the function: `attn_implementation`."""

EPSILON = 2.0**-6
"""What 2ReLU adds to the sum of a row: the constant that `ombra compile --softmax 2relu` uses."""


@dataclass(frozen=True)
class Form:
    """What one attention computes instead of its own form. Heads are numbered as in the base."""

    groups: tuple[tuple[int, ...], ...] = ()
    """Query heads that share a softmax; empty where every head has its own."""
    relu: bool = False
    """2ReLU in place of softmax."""
    kept: tuple[int, ...] = ()
    """Query heads that are left of a pruned attention, in order; empty where all are."""


def form_of(module: nn.Module) -> Form:
    """The form of an attention module; the plain one where nothing was set."""
    form = getattr(module, "ombra_form", None)
    return form if isinstance(form, Form) else Form()


def set_form(module: nn.Module, **changes: Any) -> None:
    """Changes parts of the form of an attention module."""
    module.ombra_form = replace(form_of(module), **changes)  # type: ignore[assignment]


def side_by_side(x: Tensor, groups: tuple[tuple[int, ...], ...]) -> Tensor:
    """`[batch, heads, rows, size]` to `[batch, groups, rows, m * size]`, each group's heads in its order."""
    size = len(groups[0])
    order = torch.tensor([head for group in groups for head in group], device=x.device)
    x = x[:, order]
    batch, heads, rows, width = x.shape
    x = x.reshape(batch, heads // size, size, rows, width).transpose(2, 3)
    return x.reshape(batch, heads // size, rows, size * width)


def apart(x: Tensor, groups: tuple[tuple[int, ...], ...]) -> Tensor:
    """The reverse of `side_by_side`."""
    size = len(groups[0])
    order = [head for group in groups for head in group]
    back = torch.tensor([order.index(head) for head in range(len(order))], device=x.device)
    batch, count, rows, width = x.shape
    x = x.reshape(batch, count, rows, size, width // size).transpose(2, 3)
    return x.reshape(batch, count * size, rows, width // size)[:, back]


def repeated(x: Tensor, heads: int, kept: tuple[int, ...]) -> Tensor:
    """Key or value heads, one for each query head of `heads`, or of those that are `kept`."""
    batch, own, rows, width = x.shape
    if own != heads:
        x = x[:, :, None].expand(batch, own, heads // own, rows, width).reshape(batch, heads, rows, width)
    return x[:, torch.tensor(kept, device=x.device)] if kept else x


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in the form of `module`.

    `query` is `[batch, query heads, new, size]`, `key` and `value` `[batch, key and value heads, all, size]`; the mask is
    added to scores and broadcasts over heads. Gives `[batch, new, heads, size]` and the distributions. Scores and
    distributions are in single precision, whatever the products are in.
    """
    form = form_of(module)
    heads = getattr(module, "ombra_heads", query.shape[1])
    scale = key.shape[-1] ** -0.5 if scaling is None else scaling
    key, value = repeated(key, heads, form.kept), repeated(value, heads, form.kept)
    if form.groups:
        query, key, value = (side_by_side(x, form.groups) for x in (query, key, value))
        scale = scale * len(form.groups[0]) ** -0.5
    scores = (torch.matmul(query, key.transpose(2, 3)) * scale).float()
    mask = None if attention_mask is None else attention_mask[:, :, :, : key.shape[-2]]
    if form.relu:
        positive = torch.relu(scores)
        if mask is not None:
            positive = torch.where(mask < 0, 0.0, positive)
        weights = positive / (positive.sum(-1, keepdim=True) + EPSILON)
    else:
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    output = torch.matmul(weights.to(value.dtype), value)
    if form.groups:
        output = apart(output, form.groups)
    gate = getattr(module, "ombra_gate", None)
    if isinstance(gate, Tensor):
        output = output * gate[:, None, None]
    return output.transpose(1, 2).contiguous(), weights


def additive_mask(*args: Any, **kwargs: Any) -> Any:
    """The mask of plain attention, in whichever way an exporter has it made at the moment."""
    return ALL_MASK_ATTENTION_FUNCTIONS["eager"](*args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, additive_mask)
