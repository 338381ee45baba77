"""Writes small models with what exporters and quantisers write, and what ONNX Runtime computes with them.

    pip install onnx onnxruntime numpy
    python generate.py

Where a file rounds activations to 8 bits, the expected outputs are those of a model with the weights that the file has,
in single precision: `dequantised` makes it.
"""

import pathlib
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

HERE = pathlib.Path(__file__).parent
RANDOM = np.random.default_rng(11)
VOCABULARY, WIDTH, HIDDEN = 24, 32, 48


def f(*shape):
    return (RANDOM.standard_normal(shape) * 0.5).astype(np.float32)


def initializer(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def info(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, inputs, outputs, initializers, opset=21, functions=()):
    graph = helper.make_graph(nodes, "case", inputs, outputs, initializers)
    domains = {node.domain for node in nodes} | {f.domain for f in functions}
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in sorted(domains) if d]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Some optimisations round activations.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def save(name, model, sets, reference=None):
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    for number, feeds in enumerate(sets):
        results = run(reference or model, feeds)
        data = folder / f"test_data_set_{number}"
        data.mkdir(exist_ok=True)
        for kind, tensors in [("input", feeds), ("output", results)]:
            for i, (k, v) in enumerate(tensors.items()):
                (data / f"{kind}_{i}.pb").write_bytes(numpy_helper.from_array(np.asarray(v), k).SerializeToString())
        if reference is not None:
            own = run(model, feeds)
            print(name, "rounding in the file changes", {k: float(np.abs(own[k] - v).max()) for k, v in results.items()})
    print(name, (folder / "model.onnx").stat().st_size)


IDS = info("input_ids", TensorProto.INT64, ["batch", "seq"])
MASK = info("attention_mask", TensorProto.INT64, ["batch", "seq"])
LOGITS = info("logits", TensorProto.FLOAT, None)


def ids(batch=2, seq=5):
    return RANDOM.integers(0, VOCABULARY, (batch, seq))


def perceptron():
    """An embedding and two layers."""
    nodes = [
        helper.make_node("Gather", ["embed.weight", "input_ids"], ["x0"], "/embed/Gather"),
        helper.make_node("Add", ["x0", "embed.bias"], ["x"], "/embed/Add"),
        helper.make_node("MatMul", ["x", "layers.0.up.weight"], ["h0"], "/layers.0/up/MatMul"),
        helper.make_node("Add", ["h0", "layers.0.up.bias"], ["h1"], "/layers.0/up/Add"),
        helper.make_node("Relu", ["h1"], ["h2"], "/layers.0/Relu"),
        helper.make_node("MatMul", ["h2", "layers.0.down.weight"], ["logits"], "/layers.0/down/MatMul"),
    ]
    weights = {
        "embed.weight": f(VOCABULARY, WIDTH),
        "embed.bias": f(WIDTH),
        "layers.0.up.weight": f(WIDTH, HIDDEN),
        "layers.0.up.bias": f(HIDDEN),
        "layers.0.down.weight": f(HIDDEN, WIDTH),
    }
    return nodes, weights


def float_model(weights):
    nodes, _ = perceptron()
    return model_of(nodes, [IDS], [LOGITS], [initializer(k, v) for k, v in weights.items()])


def dequantised(model, names):
    """The weights of `perceptron` with those in `names` as the integers of `model` say: name of the integers, of the scale,
    of the zero point."""
    have = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    out = {}
    for name, (q, scale, zero) in names.items():
        q, scale, zero = (have[k].astype(np.float32) for k in (q, scale, zero))
        out[name] = (q - zero) * scale
    return out


def dynamic(name, per_channel):
    _, weights = perceptron()
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/a.onnx", f"{folder}/b.onnx"
        onnx.save(float_model(weights), source)
        quantization.quantize_dynamic(source, target, per_channel=per_channel)
        model = onnx.load(target)
    quantised = [k for k in weights if k.endswith("weight")]
    parts = {k: (f"{k}_quantized", f"{k}_scale", f"{k}_zero_point") for k in quantised}
    save(name, model, [{"input_ids": ids()}], float_model({**weights, **dequantised(model, parts)}))


def static():
    _, weights = perceptron()

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.sets = iter([{"input_ids": ids(4, 16)} for _ in range(4)])

        def get_next(self):
            return next(self.sets, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/a.onnx", f"{folder}/b.onnx"
        onnx.save(float_model(weights), source)
        quantization.quantize_static(source, target, Reader(), quant_format=quantization.QuantFormat.QDQ)
        model = onnx.load(target)
    save("quantised-static", model, [{"input_ids": ids()}], unrounded(model))


def unrounded(model):
    """`model` with a Clip in the place of every QuantizeLinear with the DequantizeLinear behind it."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    have = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = {n.output[0]: n for n in graph.node if n.op_type == "QuantizeLinear"}
    nodes = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in made:
            scale, zero = (have[k] for k in node.input[1:])
            limits = np.iinfo(zero.dtype)
            names = [f"{node.output[0]}.{k}" for k in ("low", "high")]
            for name, limit in zip(names, (limits.min, limits.max)):
                value = (np.float32(limit) - np.float32(zero)) * scale
                graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
            node = helper.make_node("Clip", [made[node.input[0]].input[0], *names], node.output)
        if node.op_type != "QuantizeLinear":
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def linear():
    """DequantizeLinear of weights: by tensor, by channel, in blocks of four bits, and of integers of 32 bits."""
    nodes, weights = perceptron()
    inits = {k: v for k, v in weights.items() if k.startswith("embed")}
    q = lambda *shape: RANDOM.integers(-128, 128, shape).astype(np.int8)
    up = [
        initializer("layers.0.up.weight_q", q(WIDTH, HIDDEN)),
        initializer("layers.0.up.scale", (RANDOM.random(HIDDEN) * 0.01).astype(np.float32)),
        initializer("layers.0.up.zero", q(HIDDEN)),
        initializer("layers.0.up.bias_q", RANDOM.integers(-9999, 9999, HIDDEN).astype(np.int32)),
        initializer("layers.0.up.bias_scale", np.float32(1e-4)),
    ]
    four = RANDOM.integers(-8, 8, (HIDDEN, WIDTH))
    packed = helper.make_tensor("layers.0.down.weight_q", TensorProto.INT4, four.shape, four.flatten().tolist())
    zeros = RANDOM.integers(-8, 8, (HIDDEN // 16, WIDTH))
    down = [
        packed,
        initializer("layers.0.down.scale", (RANDOM.random((HIDDEN // 16, WIDTH)) * 0.1).astype(np.float32)),
        helper.make_tensor("layers.0.down.zero", TensorProto.INT4, zeros.shape, zeros.flatten().tolist()),
    ]
    dq = lambda names, output, **attributes: helper.make_node("DequantizeLinear", names, [output], **attributes)
    before = [
        dq([f"layers.0.up.{k}" for k in ("weight_q", "scale", "zero")], "layers.0.up.weight", axis=-1),
        dq([f"layers.0.up.{k}" for k in ("bias_q", "bias_scale")], "layers.0.up.bias"),
        dq([f"layers.0.down.{k}" for k in ("weight_q", "scale", "zero")], "layers.0.down.weight", axis=0, block_size=16),
    ]
    inits = [initializer(k, v) for k, v in inits.items()]
    save("quantised-linear", model_of(before + nodes, [IDS], [LOGITS], inits + up + down), [{"input_ids": ids()}])


def packed(name, bits, block, with_zero, bias):
    """MatMulNBits and GatherBlockQuantized."""
    _, weights = perceptron()
    blocks = lambda k: -(-k // block)
    byte = lambda *shape: RANDOM.integers(0, 256, shape).astype(np.uint8)
    inits, nodes = [], []
    if bits == 4:
        inits += [
            initializer("embed.weight_q", byte(VOCABULARY, WIDTH // 2)),
            initializer("embed.scale", (RANDOM.random((VOCABULARY, WIDTH // 16)) * 0.1).astype(np.float32)),
        ]
        operands = ["embed.weight_q", "input_ids", "embed.scale"]
        if with_zero:
            inits.append(initializer("embed.zero", byte(VOCABULARY, WIDTH // 32)))
            operands.append("embed.zero")
        nodes.append(
            helper.make_node(
                "GatherBlockQuantized", operands, ["x"], "/embed/Gather", domain="com.microsoft",
                bits=4, block_size=16, gather_axis=0, quantize_axis=1,
            )
        )
    else:
        inits.append(initializer("embed.weight", weights["embed.weight"]))
        nodes.append(helper.make_node("Gather", ["embed.weight", "input_ids"], ["x"], "/embed/Gather"))
    for part, k, n, x, y in [("up", WIDTH, HIDDEN, "x", "h1"), ("down", HIDDEN, WIDTH, "h2", "logits")]:
        where = f"layers.0.{part}"
        inits += [
            initializer(f"{where}.weight_q", byte(n, blocks(k), block * bits // 8)),
            initializer(f"{where}.scale", (RANDOM.random(n * blocks(k)) * 0.02).astype(np.float32)),
        ]
        operands = [x, f"{where}.weight_q", f"{where}.scale"]
        if with_zero:
            inits.append(initializer(f"{where}.zero", byte(n * -(-blocks(k) * bits // 8))))
            operands.append(f"{where}.zero")
        if bias:
            operands += [""] * (5 - len(operands)) + [f"{where}.bias"]
            inits.append(initializer(f"{where}.bias", f(n)))
        attributes = dict(K=k, N=n, bits=bits, block_size=block)
        nodes.append(
            helper.make_node("MatMulNBits", operands, [y], f"/layers.0/{part}/MatMul", domain="com.microsoft", **attributes)
        )
        if part == "up":
            nodes.append(helper.make_node("Relu", ["h1"], ["h2"], "/layers.0/Relu"))
    save(name, model_of(nodes, [IDS], [LOGITS], inits), [{"input_ids": ids()}])


def patches():
    """The patches of an image, as a vision transformer cuts them."""
    nodes = [
        helper.make_node(
            "Conv", ["pixel_values", "embed.weight", "embed.bias"], ["c"], "/embed/Conv", kernel_shape=[4, 4], strides=[4, 4]
        ),
        helper.make_node("Reshape", ["c", "shape"], ["r"], "/embed/Reshape"),
        helper.make_node("Transpose", ["r"], ["logits"], "/embed/Transpose", perm=[0, 2, 1]),
    ]
    inits = [initializer("embed.weight", f(8, 3, 4, 4)), initializer("embed.bias", f(8)), initializer("shape", np.array([0, 8, -1]))]
    pixels = info("pixel_values", TensorProto.FLOAT, ["batch", 3, 14, 12])
    save("patches", model_of(nodes, [pixels], [LOGITS], inits), [{"pixel_values": f(2, 3, 14, 12)}])


def dora():
    """A weight-decomposed adapter: the norms of the weight's rows come from weights alone."""
    constant = lambda name, value: initializer(name, np.asarray(value, dtype=np.float32))
    nodes = [
        helper.make_node("Gather", ["embed.weight", "input_ids"], ["x"], "/embed/Gather"),
        helper.make_node("MatMul", ["lora_B.weight", "lora_A.weight"], ["ba"], "/layers.0/MatMul"),
        helper.make_node("Mul", ["ba", "scaling"], ["sba"], "/layers.0/Mul"),
        helper.make_node("Add", ["layers.0.weight", "sba"], ["w"], "/layers.0/Add"),
        helper.make_node("ReduceL2", ["w", "one"], ["norm"], "/layers.0/ReduceL2", keepdims=0),
        helper.make_node("Div", ["magnitude", "norm"], ["m0"], "/layers.0/Div"),
        helper.make_node("Unsqueeze", ["m0", "zero"], ["m"], "/layers.0/Unsqueeze"),
        helper.make_node("Transpose", ["layers.0.weight"], ["wt"], "/layers.0/Transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["base"], "/layers.0/MatMul_1"),
        helper.make_node("Transpose", ["lora_A.weight"], ["at"], "/layers.0/Transpose_1", perm=[1, 0]),
        helper.make_node("Transpose", ["lora_B.weight"], ["bt"], "/layers.0/Transpose_2", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "at"], ["xa"], "/layers.0/lora_A/MatMul"),
        helper.make_node("MatMul", ["xa", "bt"], ["xab"], "/layers.0/lora_B/MatMul"),
        helper.make_node("Sub", ["m", "unit"], ["m1"], "/layers.0/Sub"),
        helper.make_node("Mul", ["m1", "base"], ["first"], "/layers.0/Mul_1"),
        helper.make_node("Mul", ["m", "xab"], ["second"], "/layers.0/Mul_2"),
        helper.make_node("Mul", ["second", "scaling"], ["third"], "/layers.0/Mul_3"),
        helper.make_node("Add", ["first", "third"], ["change"], "/layers.0/Add_1"),
        helper.make_node("Add", ["base", "change"], ["logits"], "/layers.0/Add_2"),
    ]
    inits = [
        initializer("embed.weight", f(VOCABULARY, WIDTH)),
        initializer("layers.0.weight", f(HIDDEN, WIDTH)),
        initializer("lora_A.weight", f(4, WIDTH)),
        initializer("lora_B.weight", f(HIDDEN, 4)),
        initializer("magnitude", 1 + np.abs(f(HIDDEN))),
        constant("scaling", 2.0),
        constant("unit", 1.0),
        initializer("one", np.array([1])),
        initializer("zero", np.array([0])),
    ]
    save("dora", model_of(nodes, [IDS], [LOGITS], inits), [{"input_ids": ids()}])


def merged():
    """Two models in the branches of an If, whose values have the names of those around it and of each other."""

    def branch(name, scale):
        nodes = [
            helper.make_node("Gather", ["embed.weight", "input_ids"], ["x"], "/Gather"),
            helper.make_node("MatMul", ["x", "weight"], ["h"], "/MatMul"),
            helper.make_node("Add", ["h", "bias"], ["logits"], "/Add"),
        ]
        inits = [initializer("weight", f(WIDTH, HIDDEN) * np.float32(scale)), initializer("bias", f(HIDDEN))]
        return helper.make_graph(nodes, name, [], [LOGITS], inits)

    nodes = [
        helper.make_node("ReduceSum", ["attention_mask"], ["count"], "/ReduceSum", keepdims=0),
        helper.make_node("Greater", ["count", "many"], ["condition"], "/Greater"),
        helper.make_node("If", ["condition"], ["logits"], "/If", then_branch=branch("then", 1), else_branch=branch("else", 2)),
    ]
    inits = [initializer("embed.weight", f(VOCABULARY, WIDTH)), initializer("many", np.array(8))]
    few, many = np.ones((2, 3), dtype=np.int64), np.ones((2, 5), dtype=np.int64)
    sets = [{"input_ids": ids(2, 3), "attention_mask": few}, {"input_ids": ids(2, 5), "attention_mask": many}]
    save("if-branches", model_of(nodes, [IDS, MASK], [LOGITS], inits), sets)


def functions():
    """Local functions that call others, with values of one name in each."""
    inner = helper.make_function(
        "local", "Scaled", ["x", "y"], ["z"],
        [helper.make_node("Mul", ["x", "y"], ["h"], "/Mul"), helper.make_node("Neg", ["h"], ["z"], "/Neg")],
        [helper.make_opsetid("", 21)],
    )
    outer = helper.make_function(
        "local", "Twice", ["x", "y"], ["z"],
        [
            helper.make_node("Scaled", ["x", "y"], ["h"], "/Scaled", domain="local"),
            helper.make_node("Scaled", ["h", "y"], ["z"], "/Scaled_1", domain="local"),
        ],
        [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
    )
    nodes = [
        helper.make_node("Gather", ["embed.weight", "input_ids"], ["h"], "/Gather"),
        helper.make_node("Twice", ["h", "scale"], ["logits"], "/Twice", domain="local"),
    ]
    inits = [initializer("embed.weight", f(VOCABULARY, WIDTH)), initializer("scale", f(WIDTH))]
    save("nested-functions", model_of(nodes, [IDS], [LOGITS], inits, functions=[inner, outer]), [{"input_ids": ids()}])


def indices():
    """NonZero of ones, ArgMax and ArgMin along several axes, Sign and Round of positions."""
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["s"], "/Shape", start=1, end=2),
        helper.make_node("ConstantOfShape", ["s"], ["ones"], "/ConstantOfShape", value=helper.make_tensor("", TensorProto.INT64, [1], [1])),
        helper.make_node("NonZero", ["ones"], ["places"], "/NonZero"),
        helper.make_node("Sub", ["places", "two"], ["from2"], "/Sub"),
        helper.make_node("Sign", ["from2"], ["signs"], "/Sign"),
        helper.make_node("Add", ["signs", "one"], ["segments"], "/Add"),
        helper.make_node("Gather", ["segment.weight", "segments"], ["segment"], "/segment/Gather"),
        helper.make_node("Gather", ["embed.weight", "input_ids"], ["x"], "/embed/Gather"),
        helper.make_node("Add", ["x", "segment"], ["logits"], "/Add_1"),
        helper.make_node("ArgMax", ["logits"], ["label"], "/ArgMax", axis=-1, keepdims=0),
        helper.make_node("ArgMin", ["logits"], ["least"], "/ArgMin", axis=1, keepdims=1),
    ]
    inits = [
        initializer("embed.weight", f(VOCABULARY, WIDTH)),
        initializer("segment.weight", f(3, WIDTH)),
        initializer("one", np.array(1)),
        initializer("two", np.array(2)),
    ]
    outputs = [LOGITS, info("label", TensorProto.INT64, None), info("least", TensorProto.INT64, None)]
    save("indices", model_of(nodes, [IDS], outputs, inits), [{"input_ids": ids()}])


def positions():
    """Positions that are counted from the ids that are no padding, as RoBERTa counts them."""
    node = helper.make_node
    nodes = [
        node("Equal", ["input_ids", "one"], ["padding"], "/Equal"),
        node("Not", ["padding"], ["token"], "/Not"),
        node("Cast", ["token"], ["counted"], "/Cast", to=TensorProto.INT32),
        node("CumSum", ["counted", "one"], ["sum"], "/CumSum"),
        node("Mul", ["sum", "counted"], ["product"], "/Mul"),
        node("Cast", ["product"], ["wide"], "/Cast_1", to=TensorProto.INT64),
        node("Add", ["wide", "one"], ["positions"], "/Add"),
        node("Gather", ["embed.weight", "input_ids"], ["x"], "/embed/Gather"),
        node("Gather", ["position.weight", "positions"], ["p"], "/position/Gather"),
        node("Add", ["x", "p"], ["sum_1"], "/Add_1"),
        node("MatMul", ["sum_1", "weight"], ["logits"], "/MatMul"),
    ]
    inits = [
        initializer("embed.weight", f(VOCABULARY, WIDTH)),
        initializer("position.weight", f(48, WIDTH)),
        initializer("weight", f(WIDTH, 5)),
        initializer("one", np.array(1)),
    ]
    padded = ids(2, 6)
    padded[0, 4:] = 1
    save("positions-from-ids", model_of(nodes, [IDS], [LOGITS], inits), [{"input_ids": padded}])


def window():
    """A fused operator whose tokens see the last three keys alone."""
    heads, size, past, new = 2, 8, 3, 4
    names = ["query", "key", "value", "past_key", "past_value", "last", "total"]
    nodes = [
        helper.make_node(
            "GroupQueryAttention", names, ["output", "present_key", "present_value"], "/GroupQueryAttention",
            domain="com.microsoft", num_heads=heads, kv_num_heads=heads, local_window_size=3,
        )
    ]
    flat = lambda name: info(name, TensorProto.FLOAT, [1, new, heads * size])
    cache = lambda name: info(name, TensorProto.FLOAT, [1, heads, past, size])
    inits = [initializer("last", np.array([past + new - 1], dtype=np.int32)), initializer("total", np.array(past + new, dtype=np.int32))]
    inputs = [flat("query"), flat("key"), flat("value"), cache("past_key"), cache("past_value")]
    outputs = [info(name, TensorProto.FLOAT, None) for name in ("output", "present_key", "present_value")]
    feeds = {k: f(1, new, heads * size) for k in names[:3]} | {k: f(1, heads, past, size) for k in names[3:5]}
    save("sliding-window", model_of(nodes, inputs, outputs, inits), [feeds])


if __name__ == "__main__":
    dynamic("quantised-dynamic", False)
    dynamic("quantised-dynamic-channels", True)
    static()
    linear()
    packed("quantised-4-bits", 4, 16, True, True)
    packed("quantised-4-bits-symmetric", 4, 32, False, False)
    packed("quantised-8-bits", 8, 32, True, False)
    patches()
    dora()
    merged()
    functions()
    indices()
    window()
    positions()
