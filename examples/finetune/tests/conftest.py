"""A small base model and its task, made once, and commands from `OMBRA` and `OMBRA_RUN`."""

import os
import pathlib

import pytest
import torch

from ombra_finetune import tiny
from ombra_finetune.config import Settings

STEPS = int(os.environ.get("OMBRA_TINY_STEPS", "150"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ombra():
    return os.environ["OMBRA"]


@pytest.fixture(scope="session")
def world(tmp_path_factory, one_thread):
    """A folder with base, a base with grouped heads, and data."""
    folder = tmp_path_factory.mktemp("world")
    tiny.make_base(folder / "base", steps=STEPS)
    tiny.make_base(folder / "grouped", steps=20, heads=6, kv_heads=2)
    tiny.make_set(folder / "data", {"train": 400, "valid": 32, "test": 48})
    return folder


@pytest.fixture(scope="session")
def settings_of(world: pathlib.Path, ombra: str):
    """Settings of a run in the world, with small numbers."""

    def make(name: str, **changes) -> Settings:
        given = dict(
            name=name,
            model=str(world / "base"),
            data=str(world / "data"),
            runs=str(world / "runs"),
            ombra=ombra,
            precision="float32",
            steps=6,
            batch=8,
            rate=1e-3,
            device="cpu",
        )
        return Settings(**{**given, **changes})

    return make
