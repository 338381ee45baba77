"""Score against cost, as an SVG file: one panel for each length of the prompt, one point for each run.

Reads a summary, JSON that `ombra-finetune table --summary` writes: a name, a title, scores and predicted costs for each run.
"""

from __future__ import annotations

import html
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, GAP = 240, 210, 52, 46, 26
INK, SOFT, DOT, LEADER = "#1a1a1a", "#8a8a8a", "#0b62a4", "#c9c9c9"
STEP = 12
"""Least distance between two labels."""


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK, size: int = 11) -> str:
    """A line of text."""
    look = f'text-anchor="{anchor}" fill="{colour}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{html.escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    """A stroke."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def bytes_of(value: float) -> str:
    """A round number of bytes."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= one:
            return f"{value / one:g} {unit}"
    return f"{value:g} B"


def apart(places: Sequence[float], lowest: float, highest: float) -> list[float]:
    """Heights of labels near `places`, at least a step from one another, all of them within bounds where that is possible."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = [0.0] * len(places)
    last = lowest - STEP
    for i in order:
        found[i] = last = max(places[i], last + STEP)
    over = highest
    for i in reversed(order):
        found[i] = over = min(found[i], over)
        over -= STEP
    return found


def panel(points: Sequence[tuple[str, float, float]], base: float, left: float, title: str, axis: bool) -> list[str]:
    """One length: names, bytes and scores; `base` is the score without tuning."""
    low = math.log10(min(x for _, x, _ in points)) - 0.15
    high = math.log10(max(x for _, x, _ in points)) + 0.15

    def across(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * WIDTH

    def up(value: float) -> float:
        return TOP + (1 - value) * HEIGHT

    bottom = TOP + HEIGHT
    drawn = [text(left, TOP - 10, title)]
    for tenth in range(0, 11, 2):
        drawn.append(line(left, up(tenth / 10), left + WIDTH, up(tenth / 10), LEADER, ' stroke-width="0.5"'))
        if axis:
            drawn.append(text(left - 6, up(tenth / 10) + 4, f"{tenth / 10:.1f}", "end", SOFT, 10))
    for mark in (one * 10.0**power for power in range(math.floor(low), math.ceil(high)) for one in (1, 2, 5)):
        if low <= math.log10(mark) <= high:
            drawn.append(line(across(mark), bottom, across(mark), bottom + 4, SOFT))
            drawn.append(text(across(mark), bottom + 16, bytes_of(mark), "middle", SOFT, 10))
    drawn.append(line(left, bottom, left + WIDTH, bottom, SOFT))
    drawn.append(line(left, up(base), left + WIDTH, up(base), SOFT, ' stroke-dasharray="3 3"'))
    heights = apart([up(y) for _, _, y in points], TOP, bottom - 4)
    for (name, x, y), height in zip(points, heights, strict=True):
        right = across(x) < left + 0.6 * WIDTH
        side = across(x) + (10 if right else -10)
        drawn.append(line(across(x), up(y), side, height, LEADER))
        drawn.append(f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5" fill="{DOT}"/>')
        drawn.append(text(side + (2 if right else -2), height + 4, name, "start" if right else "end", size=10))
    return drawn


def plot(summary: Sequence[dict[str, Any]], setting: str, score: str = "exact") -> str:
    """The SVG of a summary in one setting: `score` against the bytes that all parties send for a prompt."""
    base = next((entry[score] for entry in summary if not entry["costs"]), 0.0)
    runs = [entry for entry in summary if setting in entry["costs"]]
    lengths = [step["length"] for step in runs[0]["costs"][setting]]
    drawn = []
    for place, length in enumerate(lengths):
        points = [(entry["name"], float(entry["costs"][setting][place]["prompt"]["bytes"]), entry[score]) for entry in runs]
        left = LEFT + place * (WIDTH + GAP)
        drawn += panel(points, base, left, f"prompt of {length} tokens", place == 0)
    wide, high = LEFT + len(lengths) * (WIDTH + GAP) + 10, TOP + HEIGHT + 44
    words = {"exact": "share of exact answers", "token": "share of right tokens"}[score]
    drawn.append(text(LEFT, 18, f"{words}, by bytes sent under MPC ({setting}); dashed: the base, in the clear", size=12))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif">\n'
        f'<rect width="{wide}" height="{high}" fill="white"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def write(summary: pathlib.Path, out: pathlib.Path, setting: str) -> None:
    """Draws the summary in a file."""
    out.write_text(plot(json.loads(summary.read_text()), setting), encoding="utf-8")
