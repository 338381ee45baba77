"""The two losses of MARILL's appendix E.

Stage I: `0.1 * sum MSE(a) + 5.0 * sum MSE(h)` over private layers, where `a` is what attention gives after its output
projection and before it is added, and `h` is the residual stream after the layer, before the final norm. Stage II:
`0.5 * KL(teacher || student) + 0.5 * NLL` on the tokens of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from . import parts

ATTENTION_WEIGHT = 0.1
HIDDEN_WEIGHT = 5.0
KL_WEIGHT = 0.5
NLL_WEIGHT = 0.5


class Taps:
    """Holds what attentions and layers gave in the last forward pass, while it is entered."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        self.model, self.layers = model, layers
        self.attention: dict[int, Tensor] = {}
        self.hidden: dict[int, Tensor] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> Taps:
        for index in self.layers:
            layer = parts.layer_list(self.model)[index]
            for module, kept in ((parts.attention_of(layer), self.attention), (layer, self.hidden)):
                self.handles.append(module.register_forward_hook(self.keeper(kept, index)))
        return self

    @staticmethod
    def keeper(kept: dict[int, Tensor], index: int) -> Any:
        """A hook that keeps a module's result, or the first of its results, behind that of a beginning that rows share."""

        def keep(_: Any, __: Any, result: Any) -> None:
            found = result[0] if isinstance(result, tuple) else result
            before = kept.get(index)
            if before is not None and len(before) == 1 < len(found):
                found = torch.cat([before.expand(len(found), -1, -1), found], 1)
            kept[index] = found

        return keep

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def stage_one(student: Taps, teacher: Taps, mask: Tensor, skip_first: bool) -> tuple[Tensor, Tensor]:
    """The two sums of stage I, not yet weighted: of attention outputs and of hidden states.

    Each mean is over the positions that are not padding, and over the width, in single precision. `skip_first` leaves out
    position 0, whose state may be a hundred times as long as any other and says nothing.
    """
    on = mask.bool()
    if skip_first:
        on = on.clone()
        on[:, 0] = False

    def apart(mine: dict[int, Tensor], other: dict[int, Tensor]) -> Tensor:
        return torch.stack([F.mse_loss(mine[i][on].float(), other[i][on].float()) for i in student.layers]).sum()

    return apart(student.attention, teacher.attention), apart(student.hidden, teacher.hidden)


def stage_two(logits: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    """The loss of stage II, or the NLL alone where there is no teacher. All are of answer positions: `[positions, ...]`."""
    nll = F.cross_entropy(logits.float(), labels)
    if teacher is None:
        return nll
    mine, other = logits.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return KL_WEIGHT * F.kl_div(mine, other, log_target=True, reduction="batchmean") + NLL_WEIGHT * nll
