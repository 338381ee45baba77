"""Affine maps in place of norms, one at a time, as far as the validation score allows.

From the last norm to the first: the map is fitted by least squares to what the norm does on calibration rows, a few steps of
stage I follow, and the map stays only if the validation NLL rises by less than a set share. Source: Liu and Liu, "LLMs can
understand encrypted prompt", section on substituting layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import parts
from .data import Row, collate
from .students import Student, make_affine, norm_place


def names(student: Student) -> list[str]:
    """Norms of private layers and the one after them, from the last to the first."""
    layers = parts.layer_list(student.decoder)
    inside = [f"{layer}.{name}" for layer in student.layers for name in parts.norms_of(layers[layer])]
    return ["final", *reversed(inside)]


@torch.no_grad()
def fit(student: Student, name: str, rows: Sequence[Row], skip_first: bool) -> tuple[Tensor, Tensor | None]:
    """The weight, and the bias of a layer norm's map, that are nearest to a norm on `rows`, channel by channel."""
    holder, attribute = norm_place(student.decoder, name)
    norm: nn.Module = getattr(holder, attribute)
    centred = isinstance(norm, nn.LayerNorm)
    device = next(student.decoder.parameters()).device
    seen: list[tuple[Tensor, Tensor]] = []
    handle = norm.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
    width = norm.get_parameter("weight").shape[0]
    xx, xy, sum_y = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(3))
    count = 0
    for row in rows:
        batch = collate([row]).to(device)
        seen.clear()
        student.decoder(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        first = 1 if skip_first else 0
        x, y = (t[:, first:].double().reshape(-1, width) for t in seen[-1])
        if centred:
            x = x - x.mean(-1, keepdim=True)
        xx, xy, sum_y, count = xx + (x * x).sum(0), xy + (x * y).sum(0), sum_y + y.sum(0), count + len(x)
    handle.remove()
    weight = (xy / xx.clamp(min=1e-12)).float()
    # Centred rows have a mean near 0 in each channel, so the mean of the result is the bias.
    return weight, (sum_y / max(count, 1)).float() if centred else None


def substitute(
    student: Student,
    name: str,
    rows: Sequence[Row],
    skip_first: bool,
    settle: Callable[[], None],
    check: Callable[[], float],
    limit: float,
) -> tuple[bool, float]:
    """Tries one norm. `settle` trains shortly, `check` gives the validation NLL; gives whether it stayed, and that NLL."""
    holder, attribute = norm_place(student.decoder, name)
    norm = getattr(holder, attribute)
    before = {key: p.detach().clone() for key, p in student.trained().items()}
    weight, bias = fit(student, name, rows, skip_first)
    affine = make_affine(student.decoder, name)
    with torch.no_grad():
        affine.weight.copy_(weight)
        if affine.bias is not None and bias is not None:
            affine.bias.copy_(bias)
    settle()
    found = check()
    if found <= limit:
        return True, found
    setattr(holder, attribute, norm)
    student.take(before, everything=True)
    return False, found
