"""An exported student between three processes of this machine: its tokens beside those in the clear, its costs beside
the predicted ones.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import costs, data, onnx_files, parts
from .config import read
from .data import Row


def nearest(rows: Sequence[Row], length: int) -> Row:
    """The first row whose prompt is nearest to `length` tokens."""
    return min(rows, key=lambda row: abs(len(row.prompt) - length))


def greedy(model: pathlib.Path, prompt: Sequence[int], count: int, ends: Sequence[int]) -> tuple[list[int], list[float]]:
    """The first choices of ONNX Runtime after a prompt, up to an end, and how far each is above the second choice."""
    session = onnx_files.session(model)
    found: list[int] = []
    margins: list[float] = []
    past: dict[str, np.ndarray] = {}
    new = list(prompt)
    while len(found) < count and (not found or found[-1] not in ends):
        logits, past = onnx_files.step(session, new, past)
        second, first = np.sort(logits[-1])[-2:]
        new = [int(logits[-1].argmax())]
        found += new
        margins.append(float(first - second))
    return found, margins


def phase(found: dict[str, Any]) -> dict[str, Any]:
    """Seconds, rounds and bytes of a phase of a report, and whether the last two are as predicted."""
    counted = [found["rounds"], *found["bytes"].values(), *found["offline_bytes"].values()]
    sent = [*found["bytes"].values(), *found["offline_bytes"].values()]
    return {
        "name": found["name"],
        "seconds": found["seconds"],
        "rounds": found["rounds"]["measured"],
        "bytes": sum(pair["measured"] for pair in sent),
        "as_predicted": all(pair["measured"] == pair["predicted"] for pair in counted),
    }


def run(
    runs: str, name: str, program: str = "ombra-run", length: int = 64, count: int = 16, setting: str = "3pc"
) -> dict[str, Any]:
    """Runs an exported student on the test prompt that is nearest to `length` tokens; writes `private-SETTING.json`."""
    folder = pathlib.Path(runs) / name
    settings = read(folder / "settings.toml", {"runs": runs, "name": name})
    model = folder / "onnx" / "model.onnx"
    decoder, tokenizer = parts.load_model(settings.model), parts.load_tokenizer(settings.model)
    end = data.end_of_turn(decoder, tokenizer)
    system = data.read_system(pathlib.Path(settings.data))
    rows = data.encode(tokenizer, system, end, data.read_part(pathlib.Path(settings.data), "test"))
    row = nearest(rows, length)
    clear, margins = greedy(model, row.prompt, count, [end])
    report = folder / f"report-{setting}.json"
    tokens = ",".join(map(str, row.prompt))
    plan = folder / "onnx" / f"plan-{setting}"
    costs.call(program, "local", str(plan), "--tokens", tokens, "-n", str(count), "--report", str(report))
    told = json.loads(report.read_text())
    mine = [token for (token,) in told["tokens"]] if told["tokens"] and isinstance(told["tokens"][0], list) else told["tokens"]
    found = {
        "prompt": len(row.prompt),
        "wanted": tokenizer.decode(row.answer),
        "answer": tokenizer.decode(mine),
        "tokens": mine,
        "clear": clear,
        "least_margin": min(margins),
        "equal": mine == clear,
        "phases": [phase(one) for one in told["phases"]],
        "peak_rss_bytes": told["peak_rss_bytes"],
        "threads": told["threads"],
    }
    found["as_predicted"] = all(one["as_predicted"] for one in found["phases"])
    (folder / f"private-{setting}.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def told(found: dict[str, Any]) -> str:
    """What came of a run, for people."""
    steps = [one for one in found["phases"] if one["name"] == "decode"]
    lines = [
        f"answer: {found['answer']}",
        f"tokens: {len(found['tokens'])}, {'as' if found['equal'] else 'NOT as'} in the clear (least margin "
        f"{found['least_margin']:.2f}); bytes and rounds {'as' if found['as_predicted'] else 'NOT as'} predicted",
    ]
    for one in [p for p in found["phases"] if p["name"] != "decode"] + steps[-1:]:
        lines.append(f"{one['name']}: {one['bytes']:,} bytes, {one['rounds']} rounds, {one['seconds']:.2f} s")
    return "\n".join(lines)
