"""A small model that is made here, and a small form of the task: the whole recipe in minutes, on any machine, the same set.

The base learns to read headers: it repeats one, or lists its parameters. The private task is what `task` asks, in words of a
small vocabulary. Headers are drawn by a fixed generator, so the digest of the set is the same everywhere.
"""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from . import data, parts
from .data import IGNORED, Example
from .task import answer

NAMES = (
    "axis copy data deep depth dtype end file first fold flag grid head index item join key kind last "
    "left level limit line list mask mode name node number offset order other owner part path point port "
    "prefix query range rate ratio right root row rule scale seed size slot sort source start state step "
    "stop suffix table tail text time token total tree unit value weight width word zone"
).split()
TYPES = "Bytes Dict Float Int List None Str Tuple".split()
SIGNS = "def ( ) : , = -> ; - needs may gives repeat names interface".split()
SPECIAL = ("<pad>", "<begin>", "<end>", "<unknown>", "<user>", "<answer>")
TEMPLATE = (
    "{{ '<begin>' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' <answer> ' + m.content + ' <end>' }}"
    "{% else %}{{ ' <user> ' + m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' <answer>' }}{% endif %}"
)
SIZES = {"train": 3000, "valid": 200, "test": 400}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = {word: number for number, word in enumerate((*SPECIAL, *SIGNS, *TYPES, *NAMES))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<begin>", eos_token="<end>", pad_token="<pad>", unk_token="<unknown>"
    )
    made.chat_template = TEMPLATE
    return made


def draw_header(draw: random.Random) -> tuple[str, list[str], list[str], str]:
    """A header, its needed and optional parameters, and its result."""
    name, *parameters = draw.sample(NAMES, draw.randint(3, 6))
    needed = draw.randint(0, len(parameters))
    gives = draw.choice([*TYPES, "", ""])
    shown = [word if at < needed else f"{word} = {draw.choice(TYPES)}" for at, word in enumerate(parameters)]
    text = f"def {name} ( {' , '.join(shown)} )" + (f" -> {gives}" if gives else "") + " :"
    return text, parameters[:needed], parameters[needed:], gives


def spaced(text: str) -> str:
    """Text with every sign a word of its own."""
    return text.replace(",", " ,").replace(";", " ;")


def private_example(draw: random.Random) -> Example:
    """The private task."""
    text, needed, optional, gives = draw_header(draw)
    return Example(f"interface {text}", spaced(answer(needed, optional, gives)))


def public_example(draw: random.Random) -> Example:
    """What the base learns."""
    text, needed, optional, _ = draw_header(draw)
    if draw.random() < 0.4:
        return Example(f"repeat {text}", text)
    return Example(f"names {text}", " , ".join([*needed, *optional]))


def distinct(count: int, seed: int, make: Callable[[random.Random], Example], others: set[str]) -> list[Example]:
    """Different examples whose questions are not among `others`, which they join."""
    draw = random.Random(seed)
    found: list[Example] = []
    while len(found) < count:
        example = make(draw)
        if example.question not in others:
            others.add(example.question)
            found.append(example)
    return found


def make_set(folder: pathlib.Path, sizes: dict[str, int] | None = None) -> str:
    """Writes the private set and gives its digest."""
    seen: set[str] = set()
    counts = sizes or SIZES
    parts = {
        part: distinct(counts[part], seed, private_example, seen) for seed, part in enumerate(("test", "valid", "train"))
    }
    return data.write_set(folder, "", parts, {"made_from": "drawn headers"})


def make_base(
    folder: pathlib.Path,
    steps: int = 2500,
    layers: int = 4,
    heads: int = 6,
    kv_heads: int = 6,
    seed: int = 0,
    batch: int = 16,
) -> float:
    """Makes the base model, trains it on the public task, writes it, and gives the loss of the last steps."""
    torch.manual_seed(seed)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        initializer_range=0.04,
        tie_word_embeddings=True,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
    )
    rows = data.encode(words, "", words.eos_token_id, distinct(4000, seed + 10, public_example, set()))
    loss = fit(model, rows, steps, 2e-3, batch, seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return loss


def fit(model: PreTrainedModel, rows: list[data.Row], steps: int, highest: float, batch: int, seed: int) -> float:
    """Trains every weight on answers, and gives the mean loss of the last tenth of the steps."""
    from .train import rate_at

    optimiser = torch.optim.AdamW(model.parameters(), lr=highest, betas=(0.9, 0.98), weight_decay=0.01)
    source, losses = data.batches(rows, batch, seed), []
    model.train()
    for step in tqdm(range(steps), desc="base", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, steps, highest, 0.05)
        made = next(source)
        at = made.labels != IGNORED
        logits = parts.answer_logits(model, model, made.ids, made.mask, at)
        loss = F.cross_entropy(logits, made.labels[at])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    model.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)
