"""Models with cheaper functions in place of softmax, activations and norms, and what ONNX Runtime computes with them.

Rewrites models of ../models node by node and runs them. Needs onnx 1.19.1, onnxruntime 1.23.2 and numpy:

    python generate.py
"""

import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

HERE = pathlib.Path(__file__).parent
EPS = 2.0**-6
SHIFT = 5.0
QUAD = (0.125, 0.25, 0.5)


class Rewriting:
    """A model whose nodes are replaced one by one."""

    def __init__(self, name):
        self.name = name
        self.model = onnx.load(HERE.parent / "models" / name / "model.onnx")
        self.nodes = list(self.model.graph.node)
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.constants = 0

    def constant(self, value, kind=np.float32):
        name = f"approximation.{self.constants}"
        self.constants += 1
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def replace(self, node, made):
        """Puts `made`, a list of (operator, inputs, suffix, attributes), in place of `node`; the last one gives its result."""
        at = self.nodes.index(node)
        new = []
        for number, (op, inputs, suffix, attributes) in enumerate(made):
            last = number + 1 == len(made)
            output = node.output[0] if last else f"{node.output[0]}/{suffix}"
            new.append(helper.make_node(op, inputs, [output], f"{node.name}/{suffix}", **attributes))
        self.nodes[at : at + 1] = new

    def softmax_by_relu(self):
        for node in [n for n in self.nodes if n.op_type == "Softmax"]:
            at = node.output[0]
            self.replace(node, [
                ("Relu", [node.input[0]], "relu", {}),
                ("ReduceSum", [f"{at}/relu", self.constant([-1], np.int64)], "sum", {"keepdims": 1}),
                ("Add", [f"{at}/sum", self.constant(EPS)], "eps", {}),
                ("Div", [f"{at}/relu", f"{at}/eps"], "quotient", {}),
            ])

    def softmax_by_squares(self, shift):
        for node in [n for n in self.nodes if n.op_type == "Softmax"]:
            at = node.output[0]
            add = self.makers[node.input[0]]
            assert add.op_type == "Add", add
            scores, mask = add.input
            self.replace(node, [
                ("Greater", [mask, self.constant(-1.0)], "kept", {}),
                ("Add", [scores, self.constant(shift)], "shifted", {}),
                ("Mul", [f"{at}/shifted", f"{at}/shifted"], "square", {}),
                ("Where", [f"{at}/kept", f"{at}/square", self.constant(0.0)], "masked", {}),
                ("ReduceSum", [f"{at}/masked", self.constant([-1], np.int64)], "sum", {"keepdims": 1}),
                ("Div", [f"{at}/masked", f"{at}/sum"], "quotient", {}),
            ])

    def quad(self):
        square, linear, constant = (self.constant(c) for c in QUAD)
        for node in self.nodes[:]:
            gate = next((i for i in node.input if i in self.makers and self.makers[i].op_type == "Sigmoid"), None)
            if node.op_type != "Mul" or gate is None:
                continue
            x = self.makers[gate].input[0]
            at = node.output[0]
            self.replace(node, [
                ("Mul", [x, x], "square", {}),
                ("Mul", [f"{at}/square", square], "first", {}),
                ("Mul", [x, linear], "second", {}),
                ("Add", [f"{at}/first", f"{at}/second"], "both", {}),
                ("Add", [f"{at}/both", constant], "quad", {}),
            ])

    def relu(self):
        """In place of GELU's tanh form, whose last node is a product with 1 + tanh."""
        for node in [n for n in self.nodes if n.op_type == "Tanh"]:
            plus = next(n for n in self.nodes if node.output[0] in n.input)
            last = next(n for n in self.nodes if plus.output[0] in n.input)
            half = next(self.makers[i] for i in last.input if self.makers[i] is not plus)
            self.replace(last, [("Relu", [half.input[0]], "relu", {})])

    def affine_layer_norm(self):
        for node in [n for n in self.nodes if n.op_type == "LayerNormalization"]:
            x, weight, bias = node.input
            at = node.output[0]
            self.replace(node, [
                ("ReduceMean", [x, self.constant([-1], np.int64)], "mean", {"keepdims": 1}),
                ("Sub", [x, f"{at}/mean"], "centred", {}),
                ("Mul", [f"{at}/centred", weight], "scaled", {}),
                ("Add", [f"{at}/scaled", bias], "shifted", {}),
            ])

    def affine_rms_norm(self):
        """The product with one over the root goes."""
        for node in self.nodes[:]:
            inverse = next((self.makers[i] for i in node.input if i in self.makers and self.makers[i].op_type == "Div"), None)
            if node.op_type != "Mul" or inverse is None:
                continue
            if self.makers.get(inverse.input[1], node).op_type != "Sqrt":
                continue
            x = next(i for i in node.input if i != inverse.output[0])
            self.replace(node, [("Identity", [x], "bare", {})])

    def write(self, name, sets):
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.live())
        self.model.graph.ClearField("value_info")
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        onnx.checker.check_model(self.model)
        onnx.save(self.model, folder / "model.onnx")
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        for number, source in enumerate(sets):
            data = HERE.parent / "models" / self.name / f"test_data_set_{source}"
            inputs = {}
            target = folder / f"test_data_set_{number}"
            target.mkdir(exist_ok=True)
            for i in range(len(self.model.graph.input)):
                bytes_ = (data / f"input_{i}.pb").read_bytes()
                (target / f"input_{i}.pb").write_bytes(bytes_)
                tensor = onnx.TensorProto.FromString(bytes_)
                inputs[tensor.name] = numpy_helper.to_array(tensor)
            (logits,) = session.run(["logits"], inputs)
            assert np.isfinite(logits).all(), name
            (target / "output_0.pb").write_bytes(numpy_helper.from_array(logits, "logits").SerializeToString())
            print(name, number, logits.shape, float(np.abs(logits).max()))

    def live(self):
        """Nodes that an output needs, in order."""
        wanted = {output.name for output in self.model.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if any(output in wanted for output in node.output):
                kept.append(node)
                wanted.update(node.input)
        used = [t for t in self.model.graph.initializer if t.name in wanted]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(used)
        return kept[::-1]


def main():
    llama = Rewriting("llama-torchscript-op17")
    llama.softmax_by_relu()
    llama.quad()
    llama.affine_rms_norm()
    llama.write("llama-2relu-quad-affine", [0, 1, 2])

    llama = Rewriting("llama-torchscript-op17")
    llama.softmax_by_squares(SHIFT)
    llama.write("llama-2quad", [0, 1])

    gpt2 = Rewriting("gpt2-optimum-past")
    gpt2.softmax_by_relu()
    gpt2.relu()
    gpt2.affine_layer_norm()
    gpt2.write("gpt2-2relu-relu-affine", [0, 1, 2])


if __name__ == "__main__":
    main()
