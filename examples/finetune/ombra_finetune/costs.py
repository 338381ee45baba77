"""What the compiler says: plans, costs, advice. Everything here calls the command `ombra`, or the runtime's."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SETTINGS = ("3pc", "2pc-dealer", "2pc")
LENGTHS = (64, 512, 2048)


class CommandError(RuntimeError):
    """The compiler refused, or is not there."""


def call(ombra: str, *arguments: str, errors: bool = False) -> str:
    """What a command prints; with `errors` also what it prints for people on the way."""
    program = shutil.which(ombra)
    if program is None:
        raise CommandError(
            f"there is no command {ombra!r}: install it (cargo install --path compiler, or runtime), or give its path"
        )
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandError(f"{pathlib.Path(program).name} {arguments[0]} ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stderr + done.stdout if errors else done.stdout


@dataclass(frozen=True)
class Cost:
    """A step between all parties, by the formulas that runs are held to."""

    bytes: int
    """Sent by all parties, dealt messages included."""
    rounds: int
    """The longest chain of messages that wait for one another."""
    seconds: float
    """Time of messages on a network, computing left out."""


def compile_plan(
    ombra: str, model: pathlib.Path, base: pathlib.Path | None, out: pathlib.Path, options: Sequence[str] = ()
) -> str:
    """Compiles a model against its base and gives what the compiler prints."""
    against = ["--base", str(base)] if base else []
    return call(ombra, "compile", str(model), *against, *options, "-o", str(out), errors=True)


def step(ombra: str, plan: pathlib.Path, new: int, cached: int, network: str = "lan") -> Cost:
    """The cost of a step with `new` tokens after `cached` ones."""
    arguments = ["--dim", f"seq={new}", "--dim", f"past={cached}", "--network", network, "--format", "json"]
    return cost_of(json.loads(call(ombra, "inspect", str(plan), *arguments)))


def cost_of(found: dict[str, Any]) -> Cost:
    """Bytes, rounds and time of what `ombra inspect --format json` printed."""
    sent = sum(found["bytes"].values()) + sum(found.get("offline_bytes", {}).values())
    return Cost(int(sent), int(found["rounds"]), float(found["predicted_seconds"]["network"]))
