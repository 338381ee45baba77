"""From a finished run to a plan: ONNX files of base and student, checks, costs, and a model card.

Nothing is written where a check fails: public parameters have to be the base's bit by bit before export and stand in both
files after it, and ONNX Runtime has to compute what PyTorch does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import shutil
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from . import card, costs, data, onnx_files, parts, students
from .config import Settings, read
from .students import Student

TOLERANCE = 1e-3
"""Largest difference of a logit between PyTorch and ONNX Runtime, relative to the largest logit where that is above 1."""


class ExportError(RuntimeError):
    """A file that is not what it has to be."""


@dataclass(frozen=True)
class Exported:
    """What came of an export."""

    base_tensors: int
    public_tensors: int
    private_tensors: int
    difference: float
    """Largest difference of a logit between PyTorch and ONNX Runtime."""
    leak_bits: float
    """What groups or kept heads tell at most of private data, in bits, over all layers."""
    costs: dict[str, list[dict[str, Any]]]
    """By setting: lengths, and bytes, rounds and seconds of a prompt and of a further token."""
    refused: dict[str, str]
    """By setting: why it has no plan."""


def finish_folder(settings: Settings, folder: pathlib.Path) -> None:
    """Puts tokenizer and generation settings beside a model, with the end of a turn that training used."""
    model, tokenizer = parts.load_model(settings.model), parts.load_tokenizer(settings.model)
    end = data.end_of_turn(model, tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.save_pretrained(folder)
    generation = model.generation_config or GenerationConfig()
    generation.eos_token_id = end
    generation.save_pretrained(folder)


def base_folder(settings: Settings) -> pathlib.Path:
    """The export of the base, made where it is not there yet."""
    folder = pathlib.Path(settings.runs) / "base-onnx"
    if not (folder / "model.onnx").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        onnx_files.export(parts.load_model(settings.model), folder)
        finish_folder(settings, folder)
    return folder


def check_public(student: Student, settings: Settings, model: pathlib.Path, base: pathlib.Path) -> tuple[int, int, int]:
    """Tensors of the base, public and private ones of the student; every public parameter has to be found in both files."""
    differ = students.public_differs(student, settings)
    if differ:
        raise ExportError(f"public parameters are not the base's: {', '.join(differ[:4])}")
    ours, theirs = onnx_files.digests(model), onnx_files.digests(base)
    known, mine = set(theirs.values()), set(ours.values())
    for name, parameter in student.public().items():
        if parameter.numel() > 1 and not (found := onnx_files.digests_of(parameter) & mine):
            raise ExportError(f"the public parameter {name} is not in {model}")
        elif parameter.numel() > 1 and not found & known:
            raise ExportError(f"the public parameter {name} is not in {base} as it is in {model}")
    public = sum(1 for value in ours.values() if value in known)
    return len(theirs), public, len(ours) - public


def partitions(heads: int, size: int) -> int:
    """Ways to put heads into groups of one size."""
    count = heads // size
    return math.factorial(heads) // (math.factorial(size) ** count * math.factorial(count))


def leak_bits(settings: Settings, student: Student, structure: students.Structure, norms: int) -> float:
    """What analysis of private data shows in the public form of a student, at most, in bits; `norms` were tried."""
    heads = student.decoder.config.num_attention_heads
    bits = 0.0
    if settings.groups_from == "private" and settings.groups == "similar":
        bits += len(structure.groups) * math.log2(partitions(heads, settings.merge))
    bits += sum(math.log2(math.comb(heads, len(kept))) for kept in structure.kept.values())
    return bits + norms


def predicted(settings: Settings, model: pathlib.Path, base: pathlib.Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Plans in every setting, beside the model, and their costs at several lengths."""
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    positions = json.loads((model.parent / "config.json").read_text()).get("max_position_embeddings", 2048)
    longest = min(positions, max(costs.LENGTHS))
    for setting in costs.SETTINGS:
        plan = model.parent / f"plan-{setting}"
        options = ["--setting", setting, "--max", f"seq={longest}", "--max", f"past={longest}"]
        try:
            printed = costs.compile_plan(settings.ombra, model.parent, base.parent if base else None, plan, options)
        except costs.CommandError as error:
            refused[setting] = str(error)
            continue
        (model.parent / f"plan-{setting}.txt").write_text(printed)
        found[setting] = [
            {
                "length": length,
                "prompt": dataclasses.asdict(costs.step(settings.ombra, plan, length, 0)),
                "token": dataclasses.asdict(costs.step(settings.ombra, plan, 1, length)),
            }
            for length in costs.LENGTHS
            if length <= longest
        ]
    return found, refused


def export(runs: str, name: str, ombra: str = "ombra", compare: tuple[str, str] | None = None) -> Exported:
    """Exports a finished run into `RUNS/NAME/onnx`, compiles it in every setting, and writes `card.md`.

    `compare` names the runs of the base and of full tuning, for the share of the gain that is kept.
    """
    folder = pathlib.Path(runs) / name
    settings = read(folder / "settings.toml", {"runs": runs, "name": name, "ombra": ombra})
    student = students.finished(settings)
    structure = students.Structure.read(folder / "structure.json")
    base = base_folder(settings) / "model.onnx"
    out = folder / "onnx"
    shutil.rmtree(out, ignore_errors=True)
    tokenizer = parts.load_tokenizer(settings.model)
    end = data.end_of_turn(student.decoder, tokenizer)
    model = onnx_files.export(student.decoder, out)
    finish_folder(settings, out)
    counts = check_public(student, settings, model, base)
    system = data.read_system(pathlib.Path(settings.data))
    row = data.encode(tokenizer, system, end, data.read_part(pathlib.Path(settings.data), "valid")[:1])[0]
    tokens = row.prompt + row.answer
    difference = onnx_files.agrees(model, student.decoder, tokens)
    largest = max(1.0, float(abs(onnx_files.logits(model, tokens)).max()))
    if not difference <= TOLERANCE * largest:
        raise ExportError(f"ONNX Runtime differs from PyTorch by {difference} in a logit")
    found, refused = predicted(settings, model, base)
    bits = leak_bits(settings, student, structure, len(card.load(folder)["norms"]))
    exported = Exported(*counts, difference, bits, found, refused)
    (folder / "export.json").write_text(json.dumps(dataclasses.asdict(exported), indent=1) + "\n")
    (folder / "card.md").write_text(card.card(folder, settings, exported.__dict__, compare))
    return exported


def dry_run(settings: Settings, length: int = 128) -> str:
    """What a run would make private, what would leave MPC, and what the compiler predicts; nothing is trained."""
    student = students.begin(settings)
    if settings.train == "lora":
        student = students.change(settings, student, students.Structure())
    layers = parts.layer_list(student.decoder)
    trained, whole = student.trained(), sum(p.numel() for p in student.decoder.parameters())
    private = sum(p.numel() for p in trained.values())
    first = min(student.layers)
    outside = [name for name in trained if f"{parts.layer_prefix(student.decoder)}." not in name]
    lines = [
        f"private: {private:,} of {whole:,} parameters",
        f"private layers: {', '.join(map(str, student.layers))} of {len(layers)}",
        f"private outside layers: {', '.join(outside) or 'nothing'}",
    ]
    if settings.train == "all":
        lines.append(
            "leaves MPC: nothing, the embedding included: looking up a token is one secret product with the whole table"
        )
    else:
        which = f"the embedding and layers 0 to {first - 1}" if first else "the embedding"
        head = "" if settings.private_head else ", the head among them"
        lines.append(f"leaves MPC: {which}, which the client runs in the clear")
        lines.append(f"stays in MPC without a message: products with public weights{head}")
    base = base_folder(settings)
    options = ["--private-layers", str(len(student.layers)), "--rank", str(settings.lora_rank), "--dim", f"seq={length}"]
    options += ["--merge", str(settings.merge)] if settings.merge > 1 else []
    for setting in costs.SETTINGS:
        lines.append(f"\npredicted in {setting}, a prompt of {length} tokens (ombra advise):")
        try:
            lines.append(costs.call(settings.ombra, "advise", str(base / "model.onnx"), "--setting", setting, *options))
        except costs.CommandError as error:
            lines.append(str(error))
    return "\n".join(lines)
