"""A run: analysis, stage I, stage II, scores. Stopped at any moment, it goes on from its last checkpoint, to the bit.

What a run leaves in its folder: `settings.toml`, `structure.json` (groups and the like), `weights.safetensors` (the trained
parameters), `report.json` (curves, scores, time, memory) and `tensorboard/`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from . import affine, data, heads, losses, parts, students
from .config import Settings, SettingsError, read, write
from .data import IGNORED, Batch, Row
from .score import Score, score
from .stored import Answers
from .students import Structure, Student

AFFINE, ONE, TWO, ENDED = range(4)
"""Phases of a run, in order."""

VOLATILE = ("runs", "threads", "ombra", "save_every", "device", "test", "test_count")
"""Settings that may differ when a run goes on."""

ASIDE = 25
"""Steps that a point of a curve is a mean over."""


@dataclass
class Progress:
    """Where a run is: all that a checkpoint holds beside parameters, the optimiser and random states."""

    phase: int = AFFINE
    step: int = 0
    scales: list[float] = field(default_factory=list)
    """What the terms of stage I are divided by; empty until they are known, or where they are not balanced."""
    curve: list[list[float]] = field(default_factory=list)
    """Phase, step and loss."""
    checks: list[list[float]] = field(default_factory=list)
    """Phase, step, exact matches and NLL on the validation part."""
    norms: dict[str, list[float]] = field(default_factory=dict)
    """Whether a norm became affine (1 or 0), and the validation NLL with the map."""
    recent: list[float] = field(default_factory=list)
    """Losses since the last point of the curve."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of training by phase, over all parts of a run."""
    terms: dict[str, list[float]] = field(default_factory=dict)
    """The two terms of stage I, weighted, at its first and last step."""


@dataclass
class Run:
    """Everything that a run needs at hand."""

    settings: Settings
    device: torch.device
    bf16: bool
    student: Student
    structure: Structure
    teacher: Student | None
    answers: Answers | None
    """What the teacher says of answers, where that is kept."""
    rows: dict[str, list[Row]]
    end: int
    writer: SummaryWriter
    progress: Progress
    stop_after: int | None
    taken: int = 0


class Stopped(Exception):
    """The run was asked to stop after some steps; its checkpoint is written."""


def device_of(settings: Settings) -> torch.device:
    """The device that the settings mean."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def takes_bf16(settings: Settings, device: torch.device) -> bool:
    """Whether products are taken in bfloat16: where it was asked for, or where the hardware has it."""
    if settings.precision != "auto":
        return settings.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def read_rows(settings: Settings, student: Student) -> tuple[dict[str, list[Row]], int]:
    """The three parts as tokens, and the end of a turn."""
    tokenizer = parts.load_tokenizer(settings.model)
    folder = pathlib.Path(settings.data)
    end = data.end_of_turn(student.decoder, tokenizer)
    system = data.read_system(folder)
    return {part: data.encode(tokenizer, system, end, data.read_part(folder, part)) for part in data.PARTS}, end


def analyse(settings: Settings, student: Student, rows: Sequence[Row]) -> Structure:
    """Finds groups, or heads to keep, of a student whose forms were not changed yet."""
    structure = Structure()
    if settings.merge > 1:
        structure.groups = heads.groups(settings, student, rows)
    if settings.prune_heads > 1:
        structure.kept = heads.important(settings, student, rows)
    return structure


def load_teacher(settings: Settings, device: torch.device) -> Student | None:
    """The run that is distilled from, without gradients."""
    if not settings.teacher:
        return None
    folder = settings.run_folder(settings.teacher)
    theirs = read(folder / "settings.toml", {"runs": settings.runs, "name": settings.teacher})
    if (theirs.model, theirs.data) != (settings.model, settings.data):
        raise SettingsError(f"the teacher {settings.teacher} has another model or other data")
    teacher = students.finished(theirs)
    teacher.decoder.requires_grad_(False)
    teacher.model.to(device)
    return teacher


def rate_at(step: int, steps: int, highest: float, warm: float) -> float:
    """The learning rate of a step, counted from 0: a rise over the share `warm`, then half a cosine down to a twentieth."""
    rise = min(1.0, (step + 1) / max(warm * steps, 1.0))
    return highest * rise * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def run(settings: Settings, stop_after: int | None = None) -> dict[str, Any]:
    """Does a run, or the rest of it, and gives its report. `stop_after` ends it after so many steps with a checkpoint."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    folder = settings.folder
    if (folder / "report.json").is_file():
        raise SettingsError(f"the run {settings.name} has ended: remove {folder}, or give another name")
    folder.mkdir(parents=True, exist_ok=True)
    device = device_of(settings)
    saved = read_checkpoint(settings)
    student = students.begin(settings)
    rows, end = read_rows(settings, student)
    student.model.to(device)
    structure = analyse(settings, student, rows["train"]) if saved is None else Structure(**saved["structure"])
    student = students.change(settings, student, structure)
    student.model.to(device)
    bf16, teacher = takes_bf16(settings, device), load_teacher(settings, device)
    kept = Answers(teacher, settings.run_folder(settings.teacher), device, bf16) if teacher and settings.store_teacher else None
    state = Run(
        settings=settings,
        device=device,
        bf16=bf16,
        student=student,
        structure=structure,
        teacher=teacher,
        answers=kept,
        rows=rows,
        end=end,
        writer=SummaryWriter(str(folder / "tensorboard")),
        progress=Progress(**saved["progress"]) if saved else Progress(),
        stop_after=stop_after,
    )
    write(settings, folder / "settings.toml")
    structure.write(folder / "structure.json")
    if saved:
        student.take({name: tensor.to(device) for name, tensor in saved["weights"].items()}, everything=True)
        torch.set_rng_state(saved["random"])
    try:
        train(state, saved["optimiser"] if saved else None)
    finally:
        state.writer.close()
    return finish(state)


def train(state: Run, optimiser: dict[str, Any] | None) -> None:
    """All phases that are left. `optimiser` is the state of the one that was interrupted."""
    settings, progress = state.settings, state.progress
    if settings.train == "nothing":
        return
    if progress.phase == AFFINE:
        if settings.norm == "affine":
            make_norms_affine(state)
        progress.phase, progress.step = ONE, 0
    if progress.phase == ONE:
        stage(state, settings.steps_one, settings.rate_one, optimiser)
        progress.phase, progress.step, optimiser = TWO, 0, None
        save_checkpoint(state, None)
    if progress.phase == TWO:
        stage(state, settings.steps, settings.rate, optimiser)
        progress.phase = ENDED


def make_norms_affine(state: Run) -> None:
    """Tries every norm, and remembers what came of each."""
    settings, progress = state.settings, state.progress

    def check() -> float:
        return validate(state).nll

    def settle() -> None:
        # The same steps for every norm: what is compared is the norm, not the luck of a batch.
        scales = list(progress.scales)
        fit_steps(state, ONE, settings.affine_steps, settings.rate_one, None, quiet=True)
        progress.scales = scales

    best = check()
    for name in affine.names(state.student):
        if name in progress.norms:
            best = progress.norms[name][1] if progress.norms[name][0] else best
            continue
        calibration = state.rows["train"][: heads.CALIBRATION]
        limit = best * (1 + settings.affine_share)
        stayed, nll = affine.substitute(state.student, name, calibration, settings.skip_first, settle, check, limit)
        progress.norms[name] = [float(stayed), nll]
        if stayed:
            state.structure.affine.append(name)
            state.structure.write(settings.folder / "structure.json")
            best = nll
        save_checkpoint(state, None)


def stage(state: Run, steps: int, highest: float, optimiser: dict[str, Any] | None) -> None:
    """One stage, from the step where the run is."""
    if steps:
        fit_steps(state, state.progress.phase, steps, highest, optimiser, quiet=False)


def fit_steps(state: Run, phase: int, steps: int, highest: float, saved: dict[str, Any] | None, quiet: bool) -> None:
    """Steps of a phase with an optimiser of their own. `quiet` leaves no trace in the run's progress."""
    settings, progress = state.settings, state.progress
    trained = list(state.student.trained().values())
    optimiser = torch.optim.AdamW(trained, lr=highest, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    if saved:
        optimiser.load_state_dict(saved)
    begin = 0 if quiet else progress.step
    source = data.batches(state.rows["train"], settings.batch, settings.seed * 10 + phase, begin)
    name = f"{settings.name}, stage {'I' if phase == ONE else 'II'}"
    state.student.model.train()
    with tqdm(total=steps, initial=begin, desc=name, disable=None if not quiet else True, mininterval=1.0) as bar:
        for step in range(begin, steps):
            before = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = rate_at(step, steps, highest, settings.warm)
            batch = next(source).to(state.device)
            loss = loss_of(state, phase, batch, edge=not quiet and step in (0, steps - 1))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise SettingsError(f"the loss is {value} at step {step + 1}: lower the rate")
            bar.update(1)
            bar.set_postfix(loss=f"{value:.4f}")
            if quiet:
                continue
            spent = progress.seconds.get(str(phase), 0.0) + time.monotonic() - before
            progress.seconds[str(phase)] = spent
            progress.step = step + 1
            record(state, phase, step + 1, steps, value)
            if settings.valid_every and progress.step % settings.valid_every == 0 and step + 1 < steps:
                if is_flat(state, validate(state, phase)):
                    break
                state.student.model.train()
            state.taken += 1
            stop = state.stop_after is not None and state.taken >= state.stop_after
            if progress.step % settings.save_every == 0 or stop:
                save_checkpoint(state, optimiser.state_dict())
            if stop:
                raise Stopped(f"after {state.taken} steps")
    state.student.model.eval()


def loss_of(state: Run, phase: int, batch: Batch, edge: bool) -> Tensor:
    """The loss of a batch."""
    student, teacher, settings = state.student, state.teacher, state.settings
    cast = torch.autocast(state.device.type, torch.bfloat16, enabled=state.bf16)
    if phase == TWO:
        at = batch.labels != IGNORED
        with cast:
            logits = parts.answer_logits(student.model, student.decoder, batch.ids, batch.mask, at)
            other = None
            if state.answers is not None:
                other = state.answers.logits(batch)
            elif teacher is not None:
                with torch.no_grad():
                    other = parts.answer_logits(teacher.model, teacher.decoder, batch.ids, batch.mask, at)
        return losses.stage_two(logits, other, batch.labels[at])
    assert teacher is not None
    with losses.Taps(student.decoder, student.layers) as mine, losses.Taps(teacher.decoder, student.layers) as theirs:
        with cast:
            with torch.no_grad():
                parts.last_hidden(teacher.decoder, batch.ids, batch.mask)
            parts.last_hidden(student.decoder, batch.ids, batch.mask)
        terms = losses.stage_one(mine, theirs, batch.mask, settings.skip_first)
    weighted = [losses.ATTENTION_WEIGHT * terms[0], losses.HIDDEN_WEIGHT * terms[1]]
    if settings.balance:
        if not state.progress.scales:
            state.progress.scales = [max(float(term.detach()), 1e-12) for term in terms]
        weighted = [term / scale for term, scale in zip(terms, state.progress.scales, strict=True)]
    if edge:
        which = "first" if state.progress.step == 0 else "last"
        state.progress.terms[which] = [float(term.detach()) for term in weighted]
    return weighted[0] + weighted[1]


def record(state: Run, phase: int, step: int, steps: int, value: float) -> None:
    """Adds a loss to the curve and to TensorBoard."""
    progress = state.progress
    state.writer.add_scalar(f"loss/stage{phase}", value, step)
    progress.recent.append(value)
    if step % ASIDE == 0 or step == steps:
        mean = sum(progress.recent) / len(progress.recent)
        progress.curve.append([phase, step, mean])
        progress.recent.clear()
        tqdm.write(f"{state.settings.name}: stage {phase}, step {step} of {steps}, loss {mean:.4f}")


def validate(state: Run, phase: int | None = None) -> Score:
    """The score on the validation part, in the precision of training; recorded where a phase is given."""
    rows = state.rows["valid"][: state.settings.valid_count or None]
    found = score(state.student.model, state.student.decoder, rows, state.device, state.bf16)
    if phase is not None:
        state.progress.checks.append([phase, state.progress.step, found.exact, found.nll])
        state.writer.add_scalar(f"valid/nll{phase}", found.nll, state.progress.step)
        state.writer.add_scalar(f"valid/exact{phase}", found.exact, state.progress.step)
        tqdm.write(f"{state.settings.name}: step {state.progress.step}, valid exact {found.exact:.3f}, NLL {found.nll:.4f}")
    return found


def is_flat(state: Run, found: Score) -> bool:
    """Whether the validation NLL has not improved for as long as the settings allow."""
    patience = state.settings.patience
    seen = [nll for phase, _, _, nll in state.progress.checks if phase == state.progress.phase]
    return bool(patience) and len(seen) > patience and min(seen[-patience:]) >= min(seen[:-patience])


def save_checkpoint(state: Run, optimiser: dict[str, Any] | None) -> None:
    """Writes a checkpoint in the place of the last one."""
    if state.answers is not None:
        state.answers.save()
    path = state.settings.folder / "checkpoint.pt"
    new = path.with_suffix(".new")
    torch.save(
        {
            "settings": fixed(state.settings),
            "structure": state.structure.__dict__,
            "progress": dataclasses.asdict(state.progress),
            "weights": {name: p.detach().cpu() for name, p in state.student.trained().items()},
            "optimiser": optimiser,
            "random": torch.get_rng_state(),
        },
        new,
    )
    os.replace(new, path)


def read_checkpoint(settings: Settings) -> dict[str, Any] | None:
    """The checkpoint of an interrupted run with the same settings."""
    path = settings.folder / "checkpoint.pt"
    if not path.is_file():
        return None
    found: dict[str, Any] = torch.load(path, weights_only=True)
    mine = fixed(settings)
    other = {name for name in mine if mine[name] != found["settings"].get(name)}
    if other:
        raise SettingsError(f"{path} is of a run with other settings ({', '.join(sorted(other))}): remove {path.parent}")
    return found


def fixed(settings: Settings) -> dict[str, Any]:
    """Settings that a run cannot change on its way."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in VOLATILE}


def finish(state: Run) -> dict[str, Any]:
    """Scores, writes the report and the weights, and removes the checkpoint."""
    settings, student, progress = state.settings, state.student, state.progress
    folder = settings.folder
    student.model.eval()
    if state.answers is not None:
        state.answers.save()
    report: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "data": data.digest_of(pathlib.Path(settings.data)),
        "precision": "bf16" if state.bf16 else "float32",
        "device": str(state.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "private_layers": student.layers,
        "trained": sum(p.numel() for p in student.trained().values()),
        "public": sum(p.numel() for p in student.public().values()),
        "curve": progress.curve,
        "checks": progress.checks,
        "norms": progress.norms,
        "stage_one_terms": progress.terms,
        "seconds": progress.seconds,
    }
    # Final scores are in single precision, whatever training was in.
    valid = state.rows["valid"][: settings.valid_count or None]
    report["valid"] = score(student.model, student.decoder, valid, state.device).brief()
    if settings.test:
        before = time.monotonic()
        found = score(student.model, student.decoder, state.rows["test"][: settings.test_count or None], state.device)
        report["test"] = dataclasses.asdict(found)
        report["seconds"]["test"] = time.monotonic() - before
    report["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if settings.train != "nothing":
        student.save(folder / "weights.safetensors")
    state.structure.write(folder / "structure.json")
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return report
