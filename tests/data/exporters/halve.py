"""Writes a model of an exporter with its larger weights in half precision, which a Cast brings back: half the size, the
same graph. Expected outputs are what ONNX Runtime computes with the result.

    pip install onnx onnxruntime numpy
    python halve.py FOLDER NAME
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from generate import save

SMALLEST = 128


def main(source, name):
    source = pathlib.Path(source)
    model = onnx.load(source / "model.onnx")
    graph, casts = model.graph, []
    for tensor in list(graph.initializer):
        value = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and value.size >= SMALLEST:
            half = numpy_helper.from_array(value.astype(np.float16), f"{tensor.name}.half")
            casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
            graph.initializer.remove(tensor)
            graph.initializer.append(half)
    nodes = casts + list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for node in graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    sets = []
    for data in sorted(source.glob("test_data_set_*")):
        tensors = [onnx.TensorProto.FromString(p.read_bytes()) for p in sorted(data.glob("input_*.pb"))]
        sets.append({t.name: numpy_helper.to_array(t) for t in tensors})
    save(name, model, sets)


if __name__ == "__main__":
    main(*sys.argv[1:])
