"""What a teacher says of answers, kept in a file: its last hidden states there, which its head turns into logits.

Stage II asks the teacher for nothing else, so runs that see the same rows need one forward pass of it in all. The file
stands beside the teacher's weights and is of those weights, of one precision and of one device's kind; any other is
written anew.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Sequence

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import parts
from .data import IGNORED, Batch, Row, collate
from .students import Student

FILE = "answers.safetensors"


def key_of(row: Row) -> str:
    """The name of a row's states."""
    return hashlib.sha256(repr((row.prompt, row.answer)).encode()).hexdigest()


class Answers:
    """A teacher's states at answer positions, `[positions, width]` for each row, computed when they are first asked for."""

    def __init__(self, teacher: Student, folder: pathlib.Path, device: torch.device, bf16: bool) -> None:
        self.teacher, self.device, self.bf16 = teacher, device, bf16
        self.path = folder / FILE
        weights = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
        self.about = {"weights": weights, "precision": "bf16" if bf16 else "float32", "device": device.type}
        self.states: dict[str, Tensor] = {}
        self.written = 0
        try:
            with safe_open(self.path, "pt") as file:
                if file.metadata() == self.about:
                    self.states = {name: file.get_tensor(name) for name in file.keys()}
        except (FileNotFoundError, SafetensorError):
            pass
        self.written = len(self.states)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """The teacher's logits at the answer positions of a batch, `[positions, vocabulary]` in single precision."""
        names = [key_of(row) for row in batch.rows]
        self.compute([row for row, name in zip(batch.rows, names, strict=True) if name not in self.states])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = torch.cat([self.states[name] for name in names]).to(self.device)
            return self.teacher.decoder.get_output_embeddings()(hidden).float()

    def compute(self, rows: Sequence[Row]) -> None:
        """States of rows that are not known yet."""
        if not rows:
            return
        batch = collate(rows).to(self.device)
        at = batch.labels != IGNORED
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = parts.last_hidden(self.teacher.decoder, batch.ids, batch.mask)
        for index, row in enumerate(rows):
            self.states[key_of(row)] = hidden[index][at[index]].cpu().clone()

    def save(self) -> None:
        """Writes what was computed since the last time."""
        if len(self.states) > self.written:
            new = self.path.with_suffix(".new")
            save_file(self.states, new, self.about)
            os.replace(new, self.path)
            self.written = len(self.states)
