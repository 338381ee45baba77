"""What ONNX Runtime computes with merged models: see README.md.

usage: generate.py OMBRA [--quality]
"""
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

HERE = pathlib.Path(__file__).parent
MODELS = HERE.parent / "models"


def merge(ombra, case, folder):
    """Merges the model of a case with the command; gives the file and the groups."""
    file = pathlib.Path(folder) / f"{case['name']}.onnx"
    command = [ombra, "merge-heads", MODELS / case["model"] / "model.onnx", "--factor", str(case["factor"])]
    command += ["--groups", case["groups"], "-o", file]
    if case["base"]:
        command += ["--base", MODELS / case["base"] / "model.onnx"]
    subprocess.run(command, check=True, capture_output=True)
    return file, json.loads(file.with_suffix(".groups.json").read_text())


def session(file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def tensor(path):
    proto = onnx.TensorProto()
    proto.ParseFromString(path.read_bytes())
    return proto.name, numpy_helper.to_array(proto)


def record(ombra):
    expected = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "cases": {}}
    for case in json.loads((HERE / "cases.json").read_text()):
        with tempfile.TemporaryDirectory() as folder:
            file, groups = merge(ombra, case, folder)
            onnx.checker.check_model(str(file), full_check=True)
            model = session(file)
            out = HERE / case["name"]
            out.mkdir(exist_ok=True)
            for index in range(3):
                inputs = dict(tensor(p) for p in (MODELS / case["model"] / f"test_data_set_{index}").glob("input_*.pb"))
                (logits,) = model.run(["logits"], inputs)
                assert np.isfinite(logits).all()
                (out / f"output_{index}.pb").write_bytes(numpy_helper.from_array(logits, "logits").SerializeToString())
            expected["cases"][case["name"]] = {
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "layers": {str(layer["layer"]): layer["groups"] for layer in groups["layers"]},
            }
            print(case["name"], "written")
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def accuracy(file, rows):
    model = session(file)
    inputs = {}
    length = rows.shape[1]
    for given in model.get_inputs():
        if given.name == "input_ids":
            inputs[given.name] = rows
        elif given.name == "attention_mask":
            inputs[given.name] = np.ones_like(rows)
        elif given.name == "position_ids":
            inputs[given.name] = np.tile(np.arange(length), (len(rows), 1))
        else:
            inputs[given.name] = np.zeros((len(rows), given.shape[1], 0, given.shape[3]), np.float32)
    (logits,) = model.run(["logits"], inputs)
    logits = logits[:, :-1].astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    chosen = np.take_along_axis(logits, rows[:, 1:, None], -1)[..., 0]
    return (log_sum - chosen).mean(), (logits.argmax(-1) == rows[:, 1:]).mean()


def quality(ombra):
    _, rows = tensor(MODELS / "llama-trained" / "eval_pydoc.pb")
    for variant in ["full", "frozen", "lora"]:
        original = MODELS / "llama-trained" / variant / "model.onnx"
        print(f"{variant:<8} as it is          loss %.3f, top-1 accuracy %.3f" % accuracy(original, rows))
        for factor in [2, 3, 6]:
            for groups in ["similar", "adjacent"]:
                case = {"name": "merged", "model": f"llama-trained/{variant}", "base": "llama-trained/base"}
                with tempfile.TemporaryDirectory() as folder:
                    file, _ = merge(ombra, case | {"factor": factor, "groups": groups}, folder)
                    numbers = accuracy(file, rows)
                    print(f"{variant:<8} {factor} heads, {groups:<8} loss %.3f, top-1 accuracy %.3f" % numbers)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    quality(sys.argv[1]) if "--quality" in sys.argv[2:] else record(sys.argv[1])
