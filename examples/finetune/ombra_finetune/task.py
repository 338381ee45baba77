"""A task with exact answers, made from Python source that every machine with Python has.

The question is a function's header, the answer says which parameters are needed, which are optional, and what comes back:

    def merge(self, other: Frame, how='left', *, copy=True) -> Frame:
    needs other; may how, copy; gives Frame

Answers come from the syntax tree, so all are right. `self` and `cls` are left out, starred parameters keep their stars and
are optional, an empty part is `-`. Sources are the standard library and installed packages, so the set differs between
machines: its digest says which one it is.
"""

from __future__ import annotations

import ast
import collections
import hashlib
import pathlib
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .data import PARTS, Example, write_set

SYSTEM = "Say which parameters are needed, which are optional, and what the function gives."
PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "peft",
    "onnx",
    "onnxruntime",
    "optimum",
    "sympy",
    "networkx",
    "huggingface_hub",
)
SIZES = {"train": 4000, "valid": 200, "test": 400}
PER_FILE = 3
PER_NAME = 2
PARAMETERS = range(2, 8)
HEADER = range(30, 161)
ANSWER = 90


@dataclass(frozen=True)
class Found:
    """An example with what keeps the parts apart."""

    example: Example
    file: str
    name: str
    parameters: str


def lists(arguments: ast.arguments) -> tuple[list[str], list[str]]:
    """Needed and optional parameters, in order."""
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    needed = [a.arg for a in positional[:first_default]]
    optional = [a.arg for a in positional[first_default:]]
    if needed[:1] in (["self"], ["cls"]):
        needed = needed[1:]
    if arguments.vararg:
        optional.append(f"*{arguments.vararg.arg}")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        (needed if default is None else optional).append(argument.arg)
    if arguments.kwarg:
        optional.append(f"**{arguments.kwarg.arg}")
    return needed, optional


def answer(needed: Sequence[str], optional: Sequence[str], gives: str) -> str:
    """The interface in words."""
    return f"needs {', '.join(needed) or '-'}; may {', '.join(optional) or '-'}; gives {gives or '-'}"


def header(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """A function's header on one line."""
    bare = type(function)(
        name=function.name, args=function.args, returns=function.returns, body=[ast.Pass()], decorator_list=[], lineno=1
    )
    return ast.unparse(bare).split("\n", 1)[0]


def functions(file: pathlib.Path, label: str) -> Iterator[Found]:
    """Examples of one file."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
            continue
        needed, optional = lists(node.args)
        question = header(node)
        text = answer(needed, optional, ast.unparse(node.returns) if node.returns else "")
        fits = len(needed) + len(optional) in PARAMETERS and len(question) in HEADER and len(text) <= ANSWER
        if fits and question.isascii():
            yield Found(Example(question, text), label, node.name, ",".join([*needed, *optional]))


def sources() -> Iterator[tuple[str, pathlib.Path]]:
    """Python files, with a label that does not depend on where they are installed."""
    standard, installed = (pathlib.Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    roots = [("std", standard), *((name, installed / name) for name in PACKAGES)]
    for name, root in roots:
        for file in sorted(root.rglob("*.py")):
            inside = file.relative_to(root).as_posix()
            if "site-packages" not in inside and "/test" not in f"/{inside}" and file.stat().st_size <= 300_000:
                yield f"{name}/{inside}", file


def part_of(label: str) -> str:
    """The part of a file: two of ten are for tests, one to validate."""
    tenth = int(hashlib.sha256(label.encode()).hexdigest()[:8], 16) % 10
    return "test" if tenth < 2 else "valid" if tenth < 3 else "train"


def split(found: Sequence[Found], sizes: dict[str, int]) -> dict[str, list[Example]]:
    """The three parts: by file, and no name and no list of parameters of a part that is held out in another one."""
    seen: set[tuple[str, str]] = set()
    names: collections.Counter[str] = collections.Counter()
    parts: dict[str, list[Found]] = {part: [] for part in PARTS}
    for one in found:
        if (one.name, one.parameters) in seen or names[one.name] >= PER_NAME:
            continue
        seen.add((one.name, one.parameters))
        names[one.name] += 1
        parts[part_of(one.file)].append(one)
    held: set[str] = set()
    chosen: dict[str, list[Example]] = {}
    for part in ("test", "valid", "train"):
        fresh = [one for one in parts[part] if not {one.name, one.parameters} & held]
        held |= {text for one in fresh for text in (one.name, one.parameters)}
        chosen[part] = [one.example for one in fresh[: sizes[part]]]
    return chosen


def make(folder: pathlib.Path, sizes: dict[str, int] | None = None) -> str:
    """Writes the set and gives its digest."""
    found: list[Found] = []
    for label, file in sources():
        some = list(functions(file, label))
        random.Random(label).shuffle(some)
        found += some[:PER_FILE]
    random.Random(0).shuffle(found)
    return write_set(folder, SYSTEM, split(found, sizes or SIZES), {"made_from": ["standard library", *PACKAGES]})
