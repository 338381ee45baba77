"""Model cards and tables of results, in Markdown."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from . import score
from .config import Settings, read

DEVIATIONS = {
    "skip_first": "stage I leaves out the first position",
    "balance": "the terms of stage I are scaled to 1 at its first step",
}


def title(settings: Settings) -> str:
    """What a run does, in a few words."""
    if settings.train == "nothing":
        return "base, as it is"
    if settings.train == "all":
        return "full tuning"
    words = []
    if settings.drop_layers:
        words.append(f"top {settings.drop_layers} layers dropped")
    if settings.private_layers:
        words.append(f"last {settings.private_layers} layers")
    if settings.train == "lora":
        words.append(f"adapters of rank {settings.lora_rank}")
    if settings.merge > 1:
        words.append(f"{settings.merge} {settings.groups} heads merged")
    if settings.prune_heads > 1:
        words.append(f"one of {settings.prune_heads} heads kept")
    words += [form for form in (settings.softmax, settings.activation, settings.norm) if form != "exact"]
    return ", ".join(words or ["every layer, public head"])


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("units end with GB")


def kept(report: dict[str, Any], base: dict[str, Any], full: dict[str, Any]) -> str:
    """The share of full tuning's gain in exact answers, with its interval."""
    if len({r["data"] for r in (report, base, full)}) > 1:
        return "another set"
    mine, low, high = (r["test"]["exact"] for r in (report, base, full))
    if high == low:
        return "no gain"
    left, right = score.bootstrap(*(r["test"]["hits"] for r in (report, base, full)))
    return f"{score.gain_kept(mine, low, high):.0%} ({left:.0%} to {right:.0%})"


def load(folder: pathlib.Path) -> dict[str, Any]:
    """The report of a run."""
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def cost_rows(costs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A table of predicted costs."""
    lines = [
        "| setting | length | prompt: bytes | rounds | seconds (LAN) | a further token: bytes | rounds | seconds (LAN) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting, entries in costs.items():
        for entry in entries:
            prompt, token = entry["prompt"], entry["token"]
            lines.append(
                f"| {setting} | {entry['length']} | {size(prompt['bytes'])} | {prompt['rounds']} | {prompt['seconds']:.2f} "
                f"| {size(token['bytes'])} | {token['rounds']} | {token['seconds']:.2f} |"
            )
    return lines


def card(folder: pathlib.Path, settings: Settings, exported: dict[str, Any], compare: tuple[str, str] | None) -> str:
    """The card of an exported run."""
    report = load(folder)
    lines = [f"# {settings.name}: {title(settings)}", "", f"Base: `{settings.model}`. Set: `{report['data'][:16]}`.", ""]
    lines += [
        f"- Private: {report['trained']:,} parameters in {exported['private_tensors']} tensors; "
        f"{exported['public_tensors']} tensors are the base's.",
        f"- Steps: {settings.steps_one} of stage I, {settings.steps} of stage II, {settings.batch} examples each, "
        f"seed {settings.seed}, in {report['precision']}.",
        f"- What the public form tells of private data: at most {exported['leak_bits']:.1f} bits"
        + (f" (groups from {settings.groups_from} data)." if settings.merge > 1 else "."),
    ]
    lines += [f"- Not as in the paper: {text}." for name, text in DEVIATIONS.items() if getattr(settings, name)]
    if settings.norm == "affine":
        stayed = sum(1 for ok, _ in report["norms"].values() if ok)
        lines.append(f"- Affine norms: {stayed} of {len(report['norms'])} stayed.")
    if "test" in report:
        found = report["test"]
        lines.append(
            f"- Test, {found['count']} examples: exact {found['exact']:.3f}, tokens {found['token']:.3f}, "
            f"NLL {found['nll']:.3f}."
        )
    if compare and "test" in report:
        base, full = (load(folder.parent / name) for name in compare)
        lines.append(f"- Share of full tuning's gain: {kept(report, base, full)}, 95 % over examples.")
    lines.append(f"- ONNX Runtime and PyTorch differ by {exported['difference']:.1e} in a logit.")
    lines += ["", "Predicted costs, all parties together:", "", *cost_rows(exported["costs"])]
    lines += [f"\n{setting} has no plan:\n\n```text\n{why}\n```" for setting, why in exported["refused"].items()]
    return "\n".join(lines) + "\n"


def table(runs: pathlib.Path, names: list[str], base: str, full: str) -> str:
    """Runs side by side: scores, what is kept, and costs of a prompt and a token at every length and setting."""
    reports = {name: load(runs / name) for name in names}
    ends = load(runs / base), load(runs / full)
    lines = [
        "| run | what | private | steps I + II | exact | tokens | NLL | gain kept | minutes | peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        settings, found = read(runs / name / "settings.toml"), report["test"]
        minutes = sum(report["seconds"].get(phase, 0.0) for phase in ("1", "2")) / 60
        share = kept(report, *ends) if name not in (base, full) else "-"
        steps = "-" if settings.train == "nothing" else f"{settings.steps_one} + {settings.steps}"
        private = "-" if settings.train == "nothing" else f"{report['trained']:,}"
        lines.append(
            f"| `{name}` | {title(settings)} | {private} | {steps} | {found['exact']:.3f} "
            f"| {found['token']:.3f} | {found['nll']:.3f} | {share} | {minutes:.1f} | {size(report['peak_memory_bytes'])} |"
        )
    exported = {}
    for name in names:
        file = runs / name / "export.json"
        if file.is_file():
            exported[name] = json.loads(file.read_text())["costs"]
    for setting in sorted({setting for found in exported.values() for setting in found}):
        rows = {name: found[setting] for name, found in exported.items() if setting in found}
        lengths = [entry["length"] for entry in next(iter(rows.values()))]
        lines += ["", f"Predicted in `{setting}`: bytes of all parties, rounds, seconds of messages on a LAN:", ""]
        heads = [f"prompt of {n}" for n in lengths] + [f"token after {n}" for n in lengths]
        lines += [f"| run | {' | '.join(heads)} |", "|---" * (1 + 2 * len(lengths)) + "|"]
        for name, entries in rows.items():
            costs = [e[step] for step in ("prompt", "token") for e in entries]
            cells = [f"{size(cost['bytes'])}, {cost['rounds']}, {cost['seconds']:.2f} s" for cost in costs]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(runs: pathlib.Path, names: list[str]) -> list[dict[str, Any]]:
    """What `plot` draws: titles, scores and predicted costs of runs; a run that was not exported has no costs."""
    found = []
    for name in names:
        report, settings = load(runs / name), read(runs / name / "settings.toml")
        file = runs / name / "export.json"
        costs = json.loads(file.read_text())["costs"] if file.is_file() else {}
        scores = {key: report["test"][key] for key in ("exact", "token", "nll", "count")}
        found.append({"name": name, "title": title(settings), "data": report["data"], **scores, "costs": costs})
    return found
