"""Settings of one run: what is trained, from what, and how. A TOML file gives them, options of the command override it."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tomllib
from dataclasses import dataclass
from typing import Any


class SettingsError(ValueError):
    """Settings that do not fit together."""


CHOICES = {
    "train": ("all", "layers", "lora", "nothing"),
    "groups": ("similar", "adjacent"),
    "groups_from": ("private", "public"),
    "softmax": ("exact", "2relu"),
    "activation": ("exact", "relu"),
    "norm": ("exact", "affine"),
    "precision": ("auto", "bf16", "float32"),
    "device": ("auto", "cpu", "cuda"),
}


def option(default: Any, text: str) -> Any:
    """A field with its line of help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on, apart from the contents of the files that it names."""

    name: str = option("run", "name of the run: its folder in `runs`")
    model: str = option("base", "folder or name of the public base model")
    data: str = option("data", "folder with train.jsonl, valid.jsonl and test.jsonl")
    runs: str = option("runs", "folder that holds all runs")

    train: str = option("layers", "what is private and trained: all, layers, lora, or nothing (to score the base)")
    private_layers: int = option(0, "trained layers, counted from the end; 0 is every layer")
    private_head: bool = option(False, "untie the head and train it: its product is then one of secrets")
    lora_rank: int = option(16, "rank of adapters")
    lora_alpha: int = option(32, "adapters are scaled by alpha / rank")
    lora_targets: str = option("", "comma-separated names of the adapted modules; every linear one of a layer if empty")
    merge: int = option(1, "query heads that share a softmax, in private layers")
    groups: str = option("similar", "which heads come together: similar or adjacent")
    groups_from: str = option("private", "public: compare heads of the base on drawn tokens, so that groups tell nothing")
    softmax: str = option("exact", "exact or 2relu, in private layers")
    activation: str = option("exact", "exact or relu, in private layers")
    norm: str = option("exact", "exact or affine, in private layers, as far as the validation score allows")
    affine_steps: int = option(20, "steps of stage I after each norm that becomes affine")
    affine_share: float = option(0.02, "share by which the validation NLL may rise with such a norm")
    prune_heads: int = option(1, "keep one of so many query heads of each private layer")
    drop_layers: int = option(0, "layers that are cut off at the top")

    init: str = option("", "run whose weights the student starts from; the base if empty")
    teacher: str = option("", "run that is distilled from; labels alone if empty")
    store_teacher: bool = option(False, "keep what the teacher says of answers beside its weights, for this run and later ones")
    steps_one: int = option(0, "steps of stage I, for merged, pruned or approximated students")
    steps: int = option(300, "steps of stage II")
    rate_one: float = option(3e-4, "highest learning rate of stage I")
    rate: float = option(2e-4, "highest learning rate of stage II")
    batch: int = option(8, "examples in a step")
    warm: float = option(0.06, "share of steps in which the rate rises")
    seed: int = option(1, "seed of everything that is drawn")
    skip_first: bool = option(False, "leave position 0 out of stage I: not in the paper")
    balance: bool = option(False, "scale the terms of stage I to 1 at its first step: not in the paper")
    patience: int = option(0, "stop when the validation NLL has not improved in so many checks; 0 never")
    valid_every: int = option(0, "steps between checks on the validation part; 0 only at the end")
    valid_count: int = option(200, "examples of such a check")
    save_every: int = option(100, "steps between checkpoints")
    test: bool = option(True, "score the test part at the end, once")
    test_count: int = option(0, "examples of the test part; 0 is all")

    precision: str = option(
        "auto", "bf16 (products only; weights stay in single precision) or float32; auto asks the processor"
    )
    device: str = option("auto", "cpu or cuda")
    threads: int = option(0, "threads of the processor; 0 leaves it to PyTorch")
    ombra: str = option("ombra", "the compiler's command")

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(choices)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 0:
                raise SettingsError(f"{field.name} = {value}: expected 0 or more")
        if min(self.merge, self.prune_heads, self.lora_rank, self.batch) < 1:
            raise SettingsError("merge, prune_heads, lora_rank and batch are at least 1")
        if self.merge > 1 and self.prune_heads > 1:
            raise SettingsError("heads are merged or pruned, not both")
        if self.train in ("all", "nothing") and (self.private_layers or self.is_changed):
            raise SettingsError(f"train = {self.train!r} leaves every layer as it is: expected train = 'layers' or 'lora'")
        if self.steps_one and not self.is_changed:
            raise SettingsError("stage I is for merged, pruned or approximated students: expected steps_one = 0")
        if (self.steps_one or self.norm == "affine") and not self.teacher:
            raise SettingsError("stage I compares with a teacher: expected teacher = NAME")
        if self.store_teacher and not self.teacher:
            raise SettingsError("store_teacher keeps what a teacher says: expected teacher = NAME")
        if self.train == "lora" and self.prune_heads > 1:
            raise SettingsError("heads are pruned where layers are trained: expected train = 'layers'")
        if "/" in self.name or self.name in ("", ".", ".."):
            raise SettingsError(f"name = {self.name!r}: expected the name of a folder")

    @property
    def is_changed(self) -> bool:
        """Whether the student computes something else than its base, so that stage I has something to mend."""
        forms = (self.softmax, self.activation, self.norm)
        return self.merge > 1 or self.prune_heads > 1 or any(form != "exact" for form in forms)

    @property
    def folder(self) -> pathlib.Path:
        """Where the run keeps what it makes."""
        return pathlib.Path(self.runs) / self.name

    def run_folder(self, name: str) -> pathlib.Path:
        """The folder of another run."""
        return pathlib.Path(self.runs) / name


def write(settings: Settings, path: pathlib.Path) -> None:
    """Writes settings as TOML."""
    lines = []
    for name, value in dataclasses.asdict(settings).items():
        if isinstance(value, bool):
            lines.append(f"{name} = {str(value).lower()}")
        elif isinstance(value, str):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'{name} = "{escaped}"')
        else:
            lines.append(f"{name} = {value}")
    path.write_text("\n".join(lines) + "\n")


def read(path: pathlib.Path, changes: dict[str, Any] | None = None) -> Settings:
    """Settings of a TOML file, some of them changed."""
    given = tomllib.loads(path.read_text())
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in given:
        if name not in known:
            raise SettingsError(f"{path}: there is no setting {name!r}: expected one of {', '.join(sorted(known))}")
    return Settings(**{**given, **(changes or {})})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--config FILE` and an option for every setting."""
    parser.add_argument("--config", type=pathlib.Path, help="TOML file with settings; options override it")
    for field in dataclasses.fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        text = f"{field.metadata['help']} (default: {field.default!r})".replace("%", "%%")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            choices = CHOICES.get(field.name)
            parser.add_argument(flag, type=type(field.default), choices=choices, default=None, help=text)


def from_options(options: argparse.Namespace) -> Settings:
    """Settings of parsed options."""
    names = [field.name for field in dataclasses.fields(Settings)]
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return read(options.config, changes) if options.config else Settings(**changes)
