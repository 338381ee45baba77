"""Scores without generating, and how sure they are.

Greedy decoding gives an answer exactly if and only if every token of it, the end of the turn included, is the first choice
after those before it. So one forward pass with the answer in place says whether the model would give it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from . import parts
from .data import IGNORED, Row, collate


@dataclass(frozen=True)
class Score:
    """Means over a part, and what they are means of."""

    exact: float
    """Share of answers that greedy decoding gives to the token."""
    token: float
    """Share of answer tokens that are the first choice."""
    nll: float
    """Mean negative log-likelihood of an answer token, in nats."""
    count: int
    """Examples."""
    hits: list[int] = field(default_factory=list)
    """1 for every example that is exact, in the part's order."""

    def brief(self) -> dict[str, float]:
        """The means."""
        return {name: value for name, value in asdict(self).items() if name != "hits"}


@torch.no_grad()
def score(
    model: nn.Module, decoder: PreTrainedModel, rows: Sequence[Row], device: torch.device, bf16: bool = False, size: int = 16
) -> Score:
    """Scores `rows`; `model` is `decoder` or adapters around it."""
    was = model.training
    model.eval()
    hits, right, tokens, nll = [0] * len(rows), 0, 0, 0.0
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), size):
        chosen = order[start : start + size]
        batch = collate([rows[i] for i in chosen]).to(device)
        at = batch.labels != IGNORED
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = parts.answer_logits(model, decoder, batch.ids, batch.mask, at)
        wanted = batch.labels[at]
        good = logits.argmax(-1) == wanted
        nll += F.cross_entropy(logits, wanted, reduction="sum").item()
        right, tokens = right + int(good.sum()), tokens + len(wanted)
        owner = at.nonzero()[:, 0]
        for place, index in enumerate(chosen):
            hits[index] = int(good[owner == place].all())
    model.train(was)
    return Score(sum(hits) / len(rows), right / tokens, nll / tokens, len(rows), hits)


def gain_kept(student: float, base: float, full: float) -> float:
    """Share of full tuning's gain over the base that a student keeps."""
    return (student - base) / (full - base) if full != base else float("nan")


def bootstrap(
    student: Sequence[int], base: Sequence[int], full: Sequence[int], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Interval of 95 % for the gain kept: examples are drawn anew, the same for all three."""
    if not len(student) == len(base) == len(full):
        raise ValueError("the three scores are of different sets")
    draw, count, found = random.Random(seed), len(student), []
    for _ in range(draws):
        chosen = draw.choices(range(count), k=count)
        sums = [sum(hits[i] for i in chosen) for hits in (student, base, full)]
        if sums[2] != sums[1]:
            found.append(gain_kept(*sums))
    found.sort()
    if not found:
        return float("nan"), float("nan")
    return found[int(0.025 * len(found))], found[min(int(0.975 * len(found)), len(found) - 1)]


@torch.no_grad()
def generated(decoder: PreTrainedModel, row: Row, end: int, device: torch.device) -> tuple[int, ...]:
    """What greedy decoding gives after a prompt, by transformers' own `generate`; at most one token more than the answer."""
    ids = torch.tensor([row.prompt], device=device)
    out = decoder.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=len(row.answer) + 1,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=end,
    )
    return tuple(out[0, len(row.prompt) :].tolist())
