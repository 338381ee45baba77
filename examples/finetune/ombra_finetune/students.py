"""From a base model to a student: what is private, which forms private layers take, which parameters are trained.

A student takes from the run that it starts from what it trains itself; every other parameter is the base's, bit by bit.
So whatever is not trained stays public, and a student's file holds its trained parameters alone.
"""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import attention, parts
from .config import Settings, SettingsError

Groups = dict[int, tuple[tuple[int, ...], ...]]


@dataclass
class Structure:
    """What an analysis found once and every later use of the student needs."""

    groups: Groups = field(default_factory=dict)
    """Groups of query heads, by layer."""
    kept: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Query heads that pruning left, by layer."""
    affine: list[str] = field(default_factory=list)
    """Norms that are affine maps now, such as `3.input_layernorm`; `final` is the one after the layers."""

    def write(self, path: pathlib.Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(self.__dict__, indent=1) + "\n")

    @staticmethod
    def read(path: pathlib.Path) -> Structure:
        """Reads what `write` wrote."""
        found = json.loads(path.read_text())
        groups = {int(layer): tuple(tuple(g) for g in gs) for layer, gs in found["groups"].items()}
        kept = {int(layer): tuple(heads) for layer, heads in found["kept"].items()}
        return Structure(groups, kept, list(found["affine"]))


@dataclass
class Student:
    """A model to train."""

    model: nn.Module
    """What is run: the decoder, or adapters around it."""
    decoder: PreTrainedModel
    """The decoder, with adapters inside where there are any."""
    layers: list[int]
    """Private layers."""

    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name: the private ones."""
        return {name: p for name, p in self.decoder.named_parameters() if p.requires_grad}

    def public(self) -> dict[str, nn.Parameter]:
        """Parameters that are the base's."""
        return {name: p for name, p in self.decoder.named_parameters() if not p.requires_grad}

    def save(self, path: pathlib.Path) -> None:
        """Writes the trained parameters."""
        save_file({name: p.detach().contiguous() for name, p in self.trained().items()}, path)

    def load(self, path: pathlib.Path) -> None:
        """Reads what `save` wrote."""
        self.take(load_file(path), everything=True)

    def take(self, tensors: dict[str, Tensor], everything: bool) -> None:
        """Puts tensors into trained parameters of the same name; `everything` demands that none is missing or left over."""
        mine = self.trained()
        if everything and mine.keys() != tensors.keys():
            raise SettingsError(f"parameters do not fit: {sorted(mine.keys() ^ tensors.keys())[:4]}")
        with torch.no_grad():
            for name, parameter in mine.items():
                if name in tensors:
                    parameter.copy_(tensors[name])


class Affine(nn.Module):
    """What takes the place of a norm: `weight * x` for an RMS norm, `weight * (x - mean(x)) + bias` for a layer norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        weight = norm.get_parameter("weight")
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros_like(weight)) if isinstance(norm, nn.LayerNorm) else None

    def forward(self, x: Tensor) -> Tensor:
        """The map, over the last axis."""
        if self.bias is None:
            return self.weight * x
        return self.weight * (x - x.mean(-1, keepdim=True)) + self.bias


def private_layers(settings: Settings, decoder: PreTrainedModel) -> list[int]:
    """Numbers of the layers that are trained."""
    count = len(parts.layer_list(decoder))
    if settings.private_layers > count:
        raise SettingsError(f"private_layers = {settings.private_layers}: the model has {count}")
    return list(range(count - (settings.private_layers or count), count))


def drop_layers(decoder: PreTrainedModel, count: int) -> None:
    """Cuts off the last `count` layers."""
    layers = parts.layer_list(decoder)
    if count >= len(layers):
        raise SettingsError(f"drop_layers = {count}: the model has {len(layers)}")
    if count:
        del layers[len(layers) - count :]
        decoder.config.num_hidden_layers = len(layers)
        if getattr(decoder.config, "layer_types", None):
            decoder.config.layer_types = decoder.config.layer_types[: len(layers)]


def norm_place(decoder: PreTrainedModel, name: str) -> tuple[nn.Module, str]:
    """The module that holds a norm, by its name in `Structure.affine`, and the attribute."""
    if name == "final":
        return parts.final_norm(decoder)
    layer, _, path = name.partition(".")
    holder: nn.Module = parts.layer_list(decoder)[int(layer)]
    *before, last = path.split(".")
    return holder.get_submodule(".".join(before)), last


def make_affine(decoder: PreTrainedModel, name: str) -> Affine:
    """Puts an affine map in the place of a norm."""
    holder, attribute = norm_place(decoder, name)
    affine = Affine(getattr(holder, attribute)).to(next(decoder.parameters()).device)
    setattr(holder, attribute, affine)
    return affine


def prune(module: nn.Module, kept: tuple[int, ...], heads: int) -> None:
    """Takes heads out of an attention: rows of its query projection and columns of its output projection.

    Keys and values stay, as they do where heads are merged, so the cache keeps its shape.
    """
    query, output = getattr(module, "q_proj", None), getattr(module, "o_proj", None)
    if not isinstance(query, nn.Linear) or not isinstance(output, nn.Linear):
        raise parts.PartsError(f"heads of {type(module).__name__} cannot be pruned: expected q_proj and o_proj")
    width = query.out_features // heads
    rows = torch.tensor([head * width + i for head in kept for i in range(width)])
    with torch.no_grad():
        query.weight = nn.Parameter(query.weight[rows].clone())
        if query.bias is not None:
            query.bias = nn.Parameter(query.bias[rows].clone())
        output.weight = nn.Parameter(output.weight[:, rows].clone())
    query.out_features = output.in_features = len(rows)
    attention.set_form(module, kept=kept)


def relu_activations(layer: nn.Module) -> None:
    """ReLU in place of a layer's activation."""
    for module, name in list(parts.activations(layer)):
        setattr(module, name, nn.ReLU())


def linear_names(decoder: PreTrainedModel, layers: list[int]) -> list[str]:
    """Names of the linear modules of layers, within a layer."""
    layer = parts.layer_list(decoder)[layers[0]]
    kinds = (nn.Linear, *_conv1d())
    return sorted({name.split(".")[-1] for name, module in layer.named_modules() if isinstance(module, kinds)})


def _conv1d() -> tuple[type, ...]:
    from transformers.pytorch_utils import Conv1D

    return (Conv1D,)


def add_adapters(settings: Settings, decoder: PreTrainedModel, layers: list[int]) -> nn.Module:
    """Adapters of low rank in private layers, unmerged."""
    from peft import LoraConfig, get_peft_model

    targets = [t for t in settings.lora_targets.split(",") if t] or linear_names(decoder, layers)
    every = len(layers) == len(parts.layer_list(decoder))
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=targets,
        layers_to_transform=None if every else layers,
        layers_pattern=None if every else parts.layer_prefix(decoder).rsplit(".", 1)[-1],
    )
    torch.manual_seed(settings.seed)
    return get_peft_model(decoder, config)


def set_trained(settings: Settings, decoder: PreTrainedModel, layers: list[int]) -> None:
    """Says which parameters are trained."""
    decoder.requires_grad_(settings.train == "all")
    if settings.train != "layers":
        return
    for index in layers:
        parts.layer_list(decoder)[index].requires_grad_(True)
    holder, name = parts.final_norm(decoder)
    getattr(holder, name).requires_grad_(True)
    if settings.private_head:
        head = decoder.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        decoder.config.tie_word_embeddings = False


def begin(settings: Settings) -> Student:
    """A student without any form changed: the base, with what it starts from in the layers that it will train."""
    decoder = parts.load_model(settings.model)
    if not parts.has_plain_head(decoder):
        raise parts.PartsError("the model does something between its backbone, its head and its logits")
    drop_layers(decoder, settings.drop_layers)
    layers = private_layers(settings, decoder)
    set_trained(settings, decoder, layers)
    student = Student(decoder, decoder, layers)
    if settings.init:
        if settings.train == "lora":
            raise SettingsError("adapters start from the base: expected init to be empty")
        student.take(load_file(settings.run_folder(settings.init) / "weights.safetensors"), everything=False)
    return student


def change(settings: Settings, student: Student, structure: Structure) -> Student:
    """Gives private layers their forms, and adapters where they are asked for."""
    decoder, layers = student.decoder, student.layers
    heads = decoder.config.num_attention_heads
    for index in layers:
        layer = parts.layer_list(decoder)[index]
        module = parts.attention_of(layer)
        if index in structure.groups:
            attention.set_form(module, groups=structure.groups[index])
        if index in structure.kept:
            prune(module, structure.kept[index], heads)
        if settings.softmax == "2relu":
            attention.set_form(module, relu=True)
        if settings.activation == "relu":
            relu_activations(layer)
    for name in structure.affine:
        make_affine(decoder, name)
    if settings.train == "lora":
        return Student(add_adapters(settings, decoder, layers), decoder, layers)
    return student


def finished(settings: Settings) -> Student:
    """The student of a run that has ended."""
    folder = settings.folder
    student = change(settings, begin(settings), Structure.read(folder / "structure.json"))
    if settings.train != "nothing":
        student.load(folder / "weights.safetensors")
    student.model.eval()
    return student


def public_differs(student: Student, settings: Settings) -> list[str]:
    """Names of public parameters that are not the base's bit by bit; adapters' names are those without adapters."""
    base: dict[str, Any] = dict(parts.load_model(settings.model).named_parameters())
    differ = []
    for name, parameter in student.public().items():
        mine = name.replace(".base_layer.", ".")
        if mine not in base or not torch.equal(parameter.cpu(), base[mine]):
            differ.append(name)
    return differ
