"""Makes a model smaller for this folder, and computes its test sets.

    python reduce.py FOLDER OUT [--tie]

FOLDER holds model.onnx and test_data_set_K/input_J.pb. With --tie, large initializers of one shape become one: the
graph stays as its exporter wrote it. Outputs are those of ONNX Runtime. Set 0 has the inputs of the source; where the
model has an attention mask over all positions, a further set pads them on the left.
"""

import argparse
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

LARGE = 2048


def tie(graph):
    first = {}
    renamed = {}
    kept = []
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims))
        floats = tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        large = np.prod(tensor.dims) >= LARGE and floats
        if large and key in first:
            renamed[tensor.name] = first[key]
        else:
            first.setdefault(key, tensor.name)
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def read(path):
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return tensor.name, numpy_helper.to_array(tensor)


def padded(inputs):
    """The last three quarters of the inputs count."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.shape != inputs["input_ids"].shape or not mask.all():
        return None
    inputs = dict(inputs)
    skip = mask.shape[1] // 4
    mask = mask.copy()
    mask[:, :skip] = 0
    inputs["attention_mask"] = mask
    if "position_ids" in inputs:
        counted = np.cumsum(mask.astype(np.int64), axis=1) - 1
        inputs["position_ids"] = np.where(mask == 0, 1, counted)
    return inputs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--tie", action="store_true")
    args = parser.parse_args()
    model = onnx.load(args.folder / "model.onnx")
    if args.tie:
        tie(model.graph)
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        for prop in list(node.metadata_props):
            if prop.key != "pkg.torch.onnx.name_scopes":
                node.metadata_props.remove(prop)
    args.out.mkdir(parents=True, exist_ok=True)
    onnx.save(model, args.out / "model.onnx")
    session = onnxruntime.InferenceSession(str(args.out / "model.onnx"), providers=["CPUExecutionProvider"])
    sets = []
    for folder in sorted(args.folder.glob("test_data_set_*")):
        sets.append(dict(read(path) for path in sorted(folder.glob("input_*.pb"))))
    more = padded(sets[0])
    if more is not None and len(sets) == 1:
        sets.append(more)
    for k, inputs in enumerate(sets):
        folder = args.out / f"test_data_set_{k}"
        folder.mkdir(exist_ok=True)
        names = [output.name for output in session.get_outputs()]
        for kind, tensors in ("input", inputs), ("output", dict(zip(names, session.run(names, inputs)))):
            for j, (name, array) in enumerate(tensors.items()):
                tensor = numpy_helper.from_array(array, name)
                (folder / f"{kind}_{j}.pb").write_bytes(tensor.SerializeToString())


if __name__ == "__main__":
    main()
