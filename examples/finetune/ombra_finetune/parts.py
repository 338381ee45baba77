"""Where the parts of a decoder are, whatever its modules are called.

A decoder of transformers is a backbone with a list of as many layers as its configuration says, a norm
after them, an embedding before them and a head. Nothing here knows an architecture by name.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from . import attention


SHARED = 8
"""Tokens that all rows of a batch have to begin with for that beginning to be computed once."""


class PartsError(ValueError):
    """A model whose parts are not where those of a decoder are."""


def load_model(folder: str | pathlib.Path) -> PreTrainedModel:
    """The model of a folder, or of a name, in single precision, with attention that can take other forms."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention.NAME)
    for module in attentions(model):
        module.ombra_heads = model.config.num_attention_heads
    return model.eval()


def load_tokenizer(folder: str | pathlib.Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a name."""
    return AutoTokenizer.from_pretrained(folder)


def backbone(model: PreTrainedModel) -> nn.Module:
    """Everything but the head."""
    return model.base_model


def layer_list(model: PreTrainedModel) -> nn.ModuleList:
    """The list of layers."""
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and any(True for _ in module.parameters()):
            return module
    raise PartsError(f"the model has no list of {count} layers")


def layer_prefix(model: PreTrainedModel) -> str:
    """The name of the list of layers, such as `model.layers`."""
    wanted = layer_list(model)
    return next(name for name, module in model.named_modules() if module is wanted)


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention of a layer."""
    for name, child in layer.named_children():
        if "attn" in name or name == "attention":
            if "norm" not in name and not isinstance(child, nn.LayerNorm):
                return child
    raise PartsError(f"a layer of {type(layer).__name__} has no attention")


def attentions(model: PreTrainedModel) -> list[nn.Module]:
    """The attention of every layer."""
    return [attention_of(layer) for layer in layer_list(model)]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm over the last axis."""
    return isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__


def norms_of(layer: nn.Module) -> list[str]:
    """Names of the norms of a layer, in the order in which they stand there."""
    return [name for name, module in layer.named_modules() if is_norm(module)]


def final_norm(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that holds the norm after the last layer, and its name there."""
    layers = layer_list(model)
    holders = [module for module in backbone(model).modules() if any(child is layers for child in module.children())]
    for holder in holders:
        names = [name for name, child in holder.named_children() if is_norm(child)]
        if names:
            return holder, names[-1]
    raise PartsError("the model has no norm after its layers")


def activations(layer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules of a layer that hold an activation function, with its name there."""
    for module in layer.modules():
        for name in ("act_fn", "act", "activation_fn"):
            if callable(getattr(module, name, None)):
                yield module, name


def shared_prefix(ids: Tensor, mask: Tensor) -> int:
    """How many tokens all rows begin with, at least one less than the shortest row has; 0 where it is not worth a pass."""
    same = (ids == ids[:1]).all(0) & mask.bool().all(0)
    count = min(int(same.long().cumprod(0).sum()), int(mask.sum(1).min()) - 1)
    return count if count >= SHARED and len(ids) > 1 else 0


def last_hidden(decoder: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """What the backbone gives, `[rows, length, width]`, for rows that are padded on the right.

    A beginning that all rows share, such as a system message, is computed once and goes into the others as their cache:
    attention looks back alone, so this changes nothing but the time. Gradients flow through it.
    """
    run, shared = backbone(decoder), shared_prefix(ids, mask)
    if not shared:
        return run(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    first = run(input_ids=ids[:1, :shared], attention_mask=mask[:1, :shared], use_cache=True)
    cache = first.past_key_values
    cache.batch_repeat_interleave(len(ids))
    rest = run(input_ids=ids[:, shared:], attention_mask=mask, past_key_values=cache, use_cache=True).last_hidden_state
    return torch.cat([first.last_hidden_state.expand(len(ids), -1, -1), rest], 1)


def answer_logits(model: nn.Module, decoder: PreTrainedModel, ids: Tensor, mask: Tensor, at: Tensor) -> Tensor:
    """Logits of the positions `at`, `[batch, length]`, as `[positions, vocabulary]` in single precision.

    `model` is `decoder`, or adapters around it. The head sees only those positions: it is a fifth of a step otherwise.
    """
    hidden = last_hidden(decoder, ids, mask)
    return decoder.get_output_embeddings()(hidden[at]).float()


def has_plain_head(decoder: PreTrainedModel) -> bool:
    """Whether logits are the head's product with the backbone's result and nothing else, tried on three tokens."""
    with torch.no_grad():
        ids = torch.tensor([[0, 1, 2]], device=next(decoder.parameters()).device)
        whole = decoder(input_ids=ids, use_cache=False).logits[0]
        parts = answer_logits(decoder, decoder, ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
    return bool(torch.allclose(whole.float(), parts, atol=1e-3))
