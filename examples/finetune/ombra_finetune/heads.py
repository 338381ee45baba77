"""Which heads come together, and which are pruned.

Groups come from `ombra merge-heads`, run on an export of the model that the student starts from: the analysis, and the
form of what is computed, are the compiler's own.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from . import costs, onnx_files, parts
from .config import Settings, SettingsError
from .data import IGNORED, Row, collate
from .students import Groups, Student

CALIBRATION = 24
"""Examples that heads are compared on: about 1600 rows of attention, which suffices."""


def groups(settings: Settings, student: Student, rows: Sequence[Row]) -> Groups:
    """Groups of the private layers of a student whose forms were not changed yet.

    With `groups_from = "public"`, heads of the base are compared on tokens that the command draws; then groups tell nothing
    of the private data. Otherwise those of the student are, on the first training examples.
    """
    private = settings.groups_from == "private"
    decoder = student.decoder if private else parts.load_model(settings.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        model = onnx_files.export(decoder, folder / "model")
        options = ["--public", "*"]
        prefix = parts.layer_prefix(decoder).rsplit(".", 1)[-1]
        for layer in student.layers:
            options += ["--private", f"*{prefix}.{layer}.*"]
        if private:
            for number, row in enumerate(rows[:CALIBRATION]):
                file = folder / f"{number}.npz"
                np.savez(file, input_ids=np.array([row.prompt + row.answer], dtype=np.int64))
                options += ["--calibrate", str(file)]
        options += ["--factor", str(settings.merge), "--groups", settings.groups]
        costs.call(settings.ombra, "merge-heads", str(model), *options, "-o", str(folder / "merged.onnx"))
        return read_groups(folder / "merged.groups.json", student.layers)


def read_groups(path: pathlib.Path, layers: Sequence[int]) -> Groups:
    """Groups of a file that `ombra merge-heads` wrote, for `layers` in order."""
    found = json.loads(path.read_text())["layers"]
    if len(found) != len(layers):
        raise SettingsError(f"{path.name} has groups of {len(found)} layers: expected {len(layers)}")
    named = [entry["layer"] for entry in found]
    if any(name is not None for name in named) and named != list(layers):
        raise SettingsError(f"{path.name} has groups of layers {named}: expected {list(layers)}")
    return {layer: tuple(tuple(group) for group in entry["groups"]) for layer, entry in zip(layers, found, strict=True)}


def important(settings: Settings, student: Student, rows: Sequence[Row]) -> dict[int, tuple[int, ...]]:
    """Heads that pruning keeps: as many in every private layer, those whose mask has the largest gradient of the loss.

    Importance of a head is the mean of `|d loss / d mask|` at a mask of 1, over examples, as of Michel, Levy and Neubig
    (2019). The same number everywhere, so that it tells nothing.
    """
    decoder = student.decoder
    heads = decoder.config.num_attention_heads
    if heads % settings.prune_heads:
        raise SettingsError(f"prune_heads = {settings.prune_heads} does not divide {heads} heads")
    modules = {layer: parts.attention_of(parts.layer_list(decoder)[layer]) for layer in student.layers}
    sums = {layer: torch.zeros(heads) for layer in student.layers}
    gates = {layer: torch.ones(heads, requires_grad=True, device=next(decoder.parameters()).device) for layer in modules}
    for layer, module in modules.items():
        module.ombra_gate = gates[layer]
    for row in rows[:CALIBRATION]:
        batch = collate([row]).to(next(decoder.parameters()).device)
        at = batch.labels != IGNORED
        logits = parts.answer_logits(student.model, decoder, batch.ids, batch.mask, at)
        loss = F.cross_entropy(logits, batch.labels[at])
        for layer, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            sums[layer] += gradient.abs().cpu()
    for module in modules.values():
        del module.ombra_gate
    kept = heads // settings.prune_heads
    return {layer: tuple(sorted(total.topk(kept).indices.tolist())) for layer, total in sums.items()}
