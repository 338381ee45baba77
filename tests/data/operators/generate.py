"""Writes a model of one fused operator for every case, with inputs from a fixed seed and what ONNX Runtime computes.

    pip install onnx onnxruntime numpy
    python generate.py
"""

import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent
RANDOM = np.random.default_rng(7)
B, S, H, D, P = 2, 5, 4, 8, 3


def f(*shape):
    return (RANDOM.standard_normal(shape) * 0.5).astype(np.float32)


def ints(values, kind=np.int32):
    return np.array(values, dtype=kind)


def tables(rows, pairs):
    angles = np.outer(np.arange(rows), 10000.0 ** (-np.arange(pairs) / pairs))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def case(name, op, inputs, outputs, weights=(), domain="com.microsoft", before=(), names=None, kept=None, **attributes):
    """`inputs` by name, None for one that is left out; those in `weights` become initializers, those in `kept` are looked at."""
    given = {k: v for k, v in inputs.items() if v is not None}
    operands = names or [k if v is not None else "" for k, v in inputs.items()]
    node = helper.make_node(op, operands, outputs, name=f"/{op}", domain=domain, **attributes)
    value = lambda k, v: helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
    outs = kept or [o for o in outputs if o]
    graph = helper.make_graph(
        [*before, node],
        name,
        [value(k, v) for k, v in given.items() if k not in weights],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outs],
        [numpy_helper.from_array(given[k], k) for k in weights],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {k: v for k, v in given.items() if k not in weights}
    results = session.run(outs, feeds)
    folder = HERE / name / "test_data_set_0"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, HERE / name / "model.onnx")
    for kind, tensors in [("input", feeds), ("output", dict(zip(outs, results)))]:
        for i, (k, v) in enumerate(tensors.items()):
            (folder / f"{kind}_{i}.pb").write_bytes(numpy_helper.from_array(v, k).SerializeToString())
    print(name, {o: r.shape for o, r in zip(outs, results)})


def attention():
    x, w, b = f(B, S, 32), f(32, 96), f(96)
    parts = dict(x=x, w=w, b=b)
    wb = ("w", "b")
    case("attention", "Attention", parts, ["y"], wb, num_heads=H)
    case("attention-lengths", "Attention", dict(parts, lengths=ints([5, 3])), ["y"], wb, num_heads=H)
    mask = ints([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    case("attention-mask", "Attention", dict(parts, attention_mask=mask), ["y"], wb, num_heads=H, scale=0.25)
    case("attention-causal", "Attention", parts, ["y"], wb, num_heads=H, unidirectional=1)
    grid = np.tril(np.ones((B, S, S), np.int32))
    case("attention-grid", "Attention", dict(parts, attention_mask=grid), ["y"], wb, num_heads=H)
    past = f(2, B, H, P, D)
    full = np.ones((B, P + S), np.int32)
    more = dict(parts, attention_mask=full, past=past)
    case("attention-past", "Attention", more, ["y", "present"], wb, num_heads=H, unidirectional=1)
    bias = dict(x=x, w=w, b=b, mask=None, past=None, bias=f(B, H, S, S))
    case("attention-bias", "Attention", bias, ["y"], wb, num_heads=H)
    sizes = dict(x=x, w=f(32, 80), b=f(80))
    case("attention-sizes", "Attention", sizes, ["y"], wb, num_heads=H, qkv_hidden_sizes=[32, 32, 16])


def multi_head():
    q, k, v = f(B, S, 32), f(B, S, 32), f(B, S, 48)
    case("multihead", "MultiHeadAttention", dict(q=q, k=k, v=v), ["y"], num_heads=H)
    case("multihead-bias", "MultiHeadAttention", dict(q=q, k=k, v=v, b=f(112)), ["y"], ("b",), num_heads=H)
    mask = ints([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    more = dict(q=q, k=k, v=v, b=None, attention_mask=mask, bias=f(B, H, S, S))
    case("multihead-mask", "MultiHeadAttention", more, ["y"], num_heads=H)
    past = dict(q=q, k=k, v=k, b=None, m=None, r=None, past_key=f(B, H, P, D), past_value=f(B, H, P, D))
    case("multihead-past", "MultiHeadAttention", past, ["y", "present_key", "present_value"], num_heads=H, unidirectional=1)
    cross = dict(q=q, k=f(B, H, 7, D), v=f(B, H, 7, D))
    case("multihead-cross", "MultiHeadAttention", cross, ["y"], num_heads=H)


def grouped():
    G, R, D = 2, 16, 16
    before = [
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["sum"], keepdims=0),
        helper.make_node("Sub", ["sum", "one"], ["less"]),
        helper.make_node("Cast", ["less"], ["last"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["all"], start=1, end=2),
        helper.make_node("Squeeze", ["all"], ["length"]),
        helper.make_node("Cast", ["length"], ["total"], to=TensorProto.INT32),
    ]
    cos, sin = tables(R, D // 2)
    names = ["q", "", "", "past_key", "past_value", "last", "total", "cos", "sin"]
    outs = ["y", "present_key", "present_value"]
    run = dict(domain="com.microsoft", weights=("cos", "sin"), before=before, num_heads=H, kv_num_heads=G, do_rotary=1)
    packed = lambda tokens: f(B, tokens, (H + 2 * G) * D)
    pasts = lambda rows: dict(past_key=f(B, G, rows, D), past_value=f(B, G, rows, D))
    mask = lambda total: np.ones((B, total), np.int64)
    base = dict(cos=cos, sin=sin)
    prefill = dict(q=packed(S), attention_mask=mask(S), **pasts(0), **base)
    case("grouped-prefill", "GroupQueryAttention", prefill, outs, names=names, **run)
    padded = dict(prefill, q=packed(S), attention_mask=ints([[1] * 5, [1, 1, 1, 0, 0]], np.int64))
    case("grouped-padded", "GroupQueryAttention", padded, outs, names=names, kept=["y"], **run)
    decode = dict(q=packed(1), attention_mask=mask(P + 1), **pasts(P), **base)
    case("grouped-decode", "GroupQueryAttention", decode, outs, names=names, **run)
    apart = dict(q=f(B, S, H * D), k=f(B, S, G * D), v=f(B, S, G * D), last=ints([4, 4]), total=ints(5))
    apart = dict(apart, past_key=f(B, G, 0, D), past_value=f(B, G, 0, D), cos=cos, sin=sin)
    names = ["q", "k", "v", "past_key", "past_value", "last", "total", "cos", "sin"]
    run = dict(weights=("last", "total", "cos", "sin"), num_heads=H, kv_num_heads=G, do_rotary=1)
    case("grouped-apart", "GroupQueryAttention", apart, outs, names=names, rotary_interleaved=1, softcap=3.0, **run)
    short = dict(q=f(B, 1, H * D), k=f(B, 1, G * D), v=f(B, 1, G * D), last=ints([3, 2]), total=ints(4))
    short = dict(short, **pasts(P), cos=cos, sin=sin)
    case("grouped-lengths", "GroupQueryAttention", short, outs, names=names, kept=["y"], scale=0.3, **run)


def rotary():
    cos, sin = tables(16, D // 2)
    w = ("cos", "sin")
    positions = ints([[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]], np.int64)
    x = f(B, H, S, D)
    full = dict(x=x, position_ids=positions, cos=cos, sin=sin)
    case("rotary", "RotaryEmbedding", full, ["y"], w)
    first = dict(x=x, position_ids=ints([6], np.int64), cos=cos, sin=sin)
    case("rotary-first", "RotaryEmbedding", first, ["y"], w, interleaved=1)
    half_cos, half_sin = tables(16, D // 4)
    flat = dict(x=f(B, S, H * D), position_ids=positions, cos=half_cos, sin=half_sin)
    case("rotary-part", "RotaryEmbedding", flat, ["y"], w, num_heads=H, rotary_embedding_dim=D // 2)


def others():
    ids = ints([[1, 4, 7, 9, 2], [3, 3, 0, 0, 0]])
    segments = ints([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]])
    embed = dict(ids=ids, segments=segments, words=f(11, 16), places=f(9, 16), kinds=f(2, 16), scale=f(16), shift=f(16))
    w = ("words", "places", "kinds", "scale", "shift")
    mask = ints([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    case("embed", "EmbedLayerNormalization", dict(embed, attention_mask=mask), ["y", "", "sum"], w)
    short = {k: (None if k in ("segments", "kinds") else v) for k, v in embed.items()}
    case("embed-short", "EmbedLayerNormalization", short, ["y", ""], ("words", "places", "scale", "shift"), epsilon=1e-5)
    skip = dict(x=f(B, S, 16), skip=f(B, S, 16), scale=f(16), shift=f(16), bias=f(16))
    w = ("scale", "shift", "bias")
    case("skip-layer-norm", "SkipLayerNormalization", skip, ["y", "", "", "sum"], w, epsilon=1e-5)
    skip = dict(x=f(B, S, 16), skip=f(B, S, 16), scale=f(16), bias=f(16))
    case("skip-rms-norm", "SkipSimplifiedLayerNormalization", skip, ["y", "", "", "sum"], ("scale", "bias"), epsilon=1e-5)
    gelu = dict(x=f(B, S, 16) * 3, bias=f(16))
    case("bias-gelu", "BiasGelu", gelu, ["y"], ("bias",))
    case("fast-gelu", "FastGelu", gelu, ["y"], ("bias",))
    case("quick-gelu", "QuickGelu", dict(x=f(B, S, 16) * 3), ["y"])
    pair = dict(a=f(B, 6, S), b=f(B, 7, 6))
    case("fused-matmul", "FusedMatMul", pair, ["y"], transA=1, transB=1, alpha=0.5)
    gemm = dict(a=f(S, 6), b=f(7, 6), c=f(7))
    case("fused-gemm", "FusedGemm", gemm, ["y"], ("b", "c"), transB=1, alpha=0.5, beta=2.0, activation="Relu")


for group in (attention, multi_head, grouped, rotary, others):
    group()
