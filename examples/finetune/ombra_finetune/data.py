"""Questions and answers: files, tokens, batches.

A set is a folder with `train.jsonl`, `valid.jsonl` and `test.jsonl`, one object with `question` and `answer` a line, and
`set.json` with the system message and the digest of the three files. Scores of two sets are not comparable; the digest
tells sets apart.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARTS = ("train", "valid", "test")
IGNORED = -100
"""Label of positions that no loss looks at."""


class DataError(ValueError):
    """A set, or a tokenizer, that cannot be used."""


@dataclass(frozen=True)
class Example:
    """One question with its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Row:
    """An example as tokens. The answer ends with the end of the turn."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Rows, padded on the right: all `[rows, longest]`. `labels[t]` is the token after position `t`."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    rows: tuple[Row, ...]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.ids.to(device), self.mask.to(device), self.labels.to(device), self.rows)


def write_set(folder: pathlib.Path, system: str, parts: Mapping[str, Sequence[Example]], about: dict[str, object]) -> str:
    """Writes a set and gives its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        lines = [json.dumps({"question": e.question, "answer": e.answer}, ensure_ascii=False) for e in parts[part]]
        (folder / f"{part}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    counts = {part: len(parts[part]) for part in PARTS}
    told = {"system": system, "digest": digest_of(folder), "examples": counts, **about}
    (folder / "set.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return digest_of(folder)


def digest_of(folder: pathlib.Path) -> str:
    """SHA-256 of the three parts, one after the other."""
    whole = hashlib.sha256()
    for part in PARTS:
        whole.update((folder / f"{part}.jsonl").read_bytes())
    return whole.hexdigest()


def read_part(folder: pathlib.Path, part: str) -> list[Example]:
    """The examples of one part."""
    examples = []
    for number, line in enumerate((folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        found = json.loads(line)
        if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("question", "answer")):
            raise DataError(f"{part}.jsonl, line {number}: expected an object with question and answer")
        examples.append(Example(found["question"], found["answer"]))
    if not examples:
        raise DataError(f"{part}.jsonl has no examples")
    return examples


def read_system(folder: pathlib.Path) -> str:
    """The system message of a set; empty where it has none."""
    file = folder / "set.json"
    return str(json.loads(file.read_text(encoding="utf-8")).get("system", "")) if file.is_file() else ""


def end_of_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token at which a turn ends: the model's own, checked against what the chat template writes after an answer.

    `tokenizer.eos_token` is not asked: converted tokenizers name other tokens there, and a model that learns such an end
    scores well and never stops.
    """
    given = model.generation_config.eos_token_id if model.generation_config else None
    ends = [given] if isinstance(given, int) else list(given or [])
    if not ends:
        raise DataError("the model's generation configuration names no end token")
    if not tokenizer.chat_template:
        return ends[0]
    word = "yes"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": word}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    rest = text[text.rindex(word) + len(word) :].strip()
    after = tokenizer.encode(rest, add_special_tokens=False) if rest else []
    if not after or after[0] not in ends:
        written, wanted = (tokenizer.convert_ids_to_tokens(ids) for ids in (after[:1], ends))
        raise DataError(
            f"after an answer the chat template writes {written}, and the model ends at {wanted}: "
            "correct generation_config.json or the template, or the model will not stop"
        )
    return int(after[0])


def encode(tokenizer: PreTrainedTokenizerBase, system: str, end: int, examples: Sequence[Example]) -> list[Row]:
    """Examples as tokens, in the tokenizer's chat template where it has one."""
    rows = []
    for example in examples:
        if tokenizer.chat_template:
            turns = [{"role": "system", "content": system}] if system else []
            turns.append({"role": "user", "content": example.question})
            text = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
            prompt = tokenizer.encode(text, add_special_tokens=False)
        else:
            head = f"{system}\n" if system else ""
            prompt = tokenizer.encode(f"{head}{example.question}\n")
        answer = tokenizer.encode(example.answer, add_special_tokens=False)
        rows.append(Row(tuple(prompt), (*answer, end)))
    return rows


def collate(rows: Sequence[Row]) -> Batch:
    """A batch of rows. What is padding follows from lengths: an end of turn may have the padding's id."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for at, row in enumerate(rows):
        whole = torch.tensor(row.prompt + row.answer)
        ids[at, : len(whole)] = whole
        mask[at, : len(whole)] = 1
        labels[at, len(row.prompt) - 1 : len(whole) - 1] = whole[len(row.prompt) :]
    return Batch(ids, mask, labels, tuple(rows))


def batches(rows: Sequence[Row], size: int, seed: int, begin: int = 0) -> Iterator[Batch]:
    """Batches without end, rows of like length together, from number `begin` of the order that `seed` draws."""
    size = min(size, len(rows))
    number = 0
    epoch = 0
    while True:
        draw = random.Random(f"{seed}/{epoch}")
        order = list(rows)
        draw.shuffle(order)
        made = []
        for start in range(0, len(order), size * 16):
            pool = sorted(order[start : start + size * 16], key=len)
            made += [pool[at : at + size] for at in range(0, len(pool) - size + 1, size)]
        draw.shuffle(made)
        for chosen in made:
            if number >= begin:
                yield collate(chosen)
            number += 1
        epoch += 1
