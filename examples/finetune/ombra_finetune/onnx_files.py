"""ONNX files of models: written by optimum, read for what they hold, run by ONNX Runtime.

The base and every student are written in one way, without post-processing, which would join or rename tensors in one file
and not in the other.
"""

from __future__ import annotations

import hashlib
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn
from transformers import PreTrainedModel

TASK = "text-generation-with-past"


def export(decoder: PreTrainedModel, folder: pathlib.Path) -> pathlib.Path:
    """Writes `folder/model.onnx` with a cache, and the configurations beside it; gives the file."""
    from optimum.exporters.onnx import onnx_export_from_model

    was = decoder.training
    decoder.eval()
    device = next(decoder.parameters()).device
    decoder.to(torch.device("cpu"))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # Traces of public sizes: what they become is compared by ONNX Runtime and by the compiler's self-test.
        warnings.simplefilter("ignore")
        onnx_export_from_model(
            decoder, folder, task=TASK, no_post_process=True, do_validation=False, library_name="transformers"
        )
    decoder.to(device)  # type: ignore[arg-type]
    decoder.train(was)
    return folder / "model.onnx"


def digests(model: pathlib.Path) -> dict[str, str]:
    """SHA-256 of shape and contents of every floating tensor of two elements or more, by name."""
    found = {}
    proto = onnx.load(str(model))
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.size > 1:
            found[tensor.name] = digest(array)
    return found


def digest(array: np.ndarray) -> str:
    """SHA-256 of shape and contents."""
    return hashlib.sha256(str(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def digests_of(parameter: nn.Parameter) -> set[str]:
    """The digests that a parameter may have in a file: as it is, and transposed."""
    array = parameter.detach().cpu().numpy()
    return {digest(array), digest(array.T)}


def session(model: pathlib.Path) -> onnxruntime.InferenceSession:
    """A file in ONNX Runtime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def step(
    run: onnxruntime.InferenceSession, tokens: Sequence[int], past: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits of new tokens after a cache, `[length, vocabulary]`, and the cache after them. `{}` is an empty cache."""
    done = next(iter(past.values())).shape[2] if past else 0
    known = {
        "input_ids": np.array([tokens], dtype=np.int64),
        "attention_mask": np.ones((1, done + len(tokens)), dtype=np.int64),
        "position_ids": np.arange(done, done + len(tokens), dtype=np.int64)[None],
    }
    inputs = {}
    for slot in run.get_inputs():
        if slot.name in known:
            inputs[slot.name] = known[slot.name]
        elif past:
            inputs[slot.name] = past[slot.name]
        else:
            _, heads, _, size = slot.shape
            inputs[slot.name] = np.zeros((1, heads, 0, size), dtype=np.float32)
    found = dict(zip([slot.name for slot in run.get_outputs()], run.run(None, inputs), strict=True))
    after = {name.replace("present", "past_key_values"): value for name, value in found.items() if name != "logits"}
    return np.asarray(found["logits"])[0], after


def logits(model: pathlib.Path, tokens: Sequence[int]) -> np.ndarray:
    """Logits of all positions of one row of tokens, `[length, vocabulary]`, by ONNX Runtime with an empty cache."""
    return step(session(model), tokens, {})[0]


@torch.no_grad()
def agrees(model: pathlib.Path, decoder: PreTrainedModel, tokens: Sequence[int]) -> float:
    """The largest difference of logits between a file and the model in memory."""
    device = next(decoder.parameters()).device
    mine = decoder(input_ids=torch.tensor([list(tokens)], device=device), use_cache=False).logits[0]
    return float(np.abs(mine.float().cpu().numpy() - logits(model, tokens)).max())
