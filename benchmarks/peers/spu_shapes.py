"""Transformer shapes with random weights under SecretFlow SPU, to be compared with Ombra on the same machine.

Every party is a process of its own over loopback; weights and inputs are secret; GELU, SiLU and softmax have PUMA's forms
(arXiv 2307.12533). `benchmarks/src/bin/speed.rs` calls this; by hand, with CPython 3.11:

    pip install spu==0.9.5
    python spu_shapes.py --model gpt2 --layers 12 --seq 64 --head last

Timed is the run on all parties behind a barrier: not the compilation, nor the dealing of shares. SPU's products ask for
four OpenMP threads whatever the machine has, which costs two to four times on two cores, so parties get one
(`OMP_THREAD_LIMIT`). Prints `| seconds | bytes | largest error |`, the error against the exact functions in float.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import socket
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax
import jax.numpy as jnp
import numpy as np

SENT = re.compile(r"Link details: total send bytes (\d+)")
SHAPES = {
    "gpt2": {"d": 768, "heads": 12, "f": 3072, "vocab": 50257},
    "bert": {"d": 768, "heads": 12, "f": 3072, "vocab": 0},
    "llama": {"d": 1024, "heads": 16, "f": 2816, "vocab": 32000},
}
PARTIES = {"ABY3": 3, "SEMI2K": 2, "CHEETAH": 2}
# SPU's exponential has no clamp: a mask of -1e4 makes it wrong by hundreds.
MASKED = -30.0


def free_ports(count):
    """So many ports of this machine that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def party(rank, ports, config, pipe, log):
    """One party: takes shares, runs programs, gives shares back."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import spu.api as api
    from spu import libspu

    link = libspu.link.Desc()
    link.recv_timeout_ms = 1_800_000
    link.http_timeout_ms = 600_000
    link.http_max_payload_size = 32 << 20
    for i, port in enumerate(ports):
        link.add_party(f"p{i}", f"127.0.0.1:{port}")
    link = libspu.link.create_brpc(link, rank)
    settings = libspu.RuntimeConfig()
    settings.ParseFromJsonString(config)
    runtime = api.Runtime(link, settings)
    pipe.send("up")
    while True:
        what, *given = pipe.recv()
        if what == "set":
            name, meta, chunks = given
            share = libspu.Share()
            share.meta, share.share_chunks = meta, chunks
            runtime.set_var(name, share)
            pipe.send("set")
        elif what == "run":
            program = libspu.Executable()
            program.ParseFromString(given[0])
            before = os.path.getsize(log)
            link.barrier()
            start = time.perf_counter()
            runtime.run(program)
            seconds = time.perf_counter() - start
            link.barrier()
            time.sleep(0.02)
            with open(log) as text:
                text.seek(before)
                sent = SENT.search(text.read())
            pipe.send((seconds, int(sent[1]) if sent else 0))
        elif what == "get":
            share = runtime.get_var(given[0])
            pipe.send((share.meta, list(share.share_chunks)))
        else:
            os._exit(0)


class Cluster:
    """The parties of a protocol, driven from this process."""

    def __init__(self, protocol):
        import spu.api as api
        from spu import libspu

        self.spu, count = libspu, PARTIES[protocol]
        config = json.dumps({"protocol": protocol, "field": "FM64", "enable_pphlo_profile": True})
        settings = libspu.RuntimeConfig()
        settings.ParseFromJsonString(config)
        self.io = api.Io(count, settings)
        os.environ.setdefault("OMP_THREAD_LIMIT", "1")
        context, folder, ports = multiprocessing.get_context("spawn"), tempfile.mkdtemp(), free_ports(count)
        self.parties = []
        for rank in range(count):
            mine, theirs = context.Pipe()
            log = os.path.join(folder, f"party{rank}.log")
            context.Process(target=party, args=(rank, ports, config, theirs, log), daemon=True).start()
            self.parties.append(mine)
        assert all(pipe.recv() == "up" for pipe in self.parties)

    def ask(self, messages):
        """Sends every party its message; their answers."""
        for pipe, message in zip(self.parties, messages):
            pipe.send(message)
        return [pipe.recv() for pipe in self.parties]

    def share(self, name, values):
        shares = self.io.make_shares(np.ascontiguousarray(values), self.spu.Visibility.VIS_SECRET)
        self.ask([("set", name, share.meta, list(share.share_chunks)) for share in shares])

    def opened(self, name):
        shares = []
        for meta, chunks in self.ask([("get", name)] * len(self.parties)):
            share = self.spu.Share()
            share.meta, share.share_chunks = meta, chunks
            shares.append(share)
        return self.io.reconstruct(shares)

    def close(self):
        for pipe in self.parties:
            pipe.send(("quit",))


def puma_gelu(x):
    """PUMA, section 4.1: two polynomials between -4 and 3."""
    low, middle, high = x < -4.0, x < -1.95, x > 3.0
    x2, x3 = jnp.square(x), x * jnp.square(x)
    x4, x6 = jnp.square(x2), jnp.square(x3)
    left = -0.011034134030615728 * x3 - 0.11807612951181953 * x2 - 0.42226581151983866 * x - 0.5054031199708174
    right = 0.0018067462606141187 * x6 - 0.037688200365904236 * x4 + 0.3603292692789629 * x2 + 0.5 * x + 0.008526321541038084
    return high * x + (low ^ middle) * left + (middle ^ high ^ True) * right


def puma_silu(x):
    """Two polynomials between -8 and 4."""
    low, middle, high = x < -8.0, x < -4.0, x > 4.0
    x2 = jnp.square(x)
    x4 = jnp.square(x2)
    left = -0.0055465625580307 * x2 - 0.0819767021525476 * x - 0.3067541139982155
    right = 0.0002743776353465 * x2 * x4 - 0.011113046708173 * x4 + 0.2281430841728270 * x2 + 0.5 * x + 0.0085064025895951
    return high * x + (low ^ middle) * left + (middle ^ high ^ True) * right


def puma_softmax(x):
    """PUMA, section 4.2: the exponential is nothing below -14."""
    x = x - jnp.max(x, -1, keepdims=True)
    e = jnp.exp(x) * (x > -14)
    return e / jnp.sum(e, -1, keepdims=True)


EXACT = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "softmax": lambda x: jax.nn.softmax(x, -1),
}
PUMA = {"gelu": puma_gelu, "silu": puma_silu, "softmax": puma_softmax}


def layer_norm(x, scale, bias):
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale + bias


def rms_norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def attention(q, k, v, heads, mask, softmax, turn=lambda t: t):
    def split(t):
        return t.reshape(t.shape[0], heads, -1).transpose(1, 0, 2)

    q, k, v = turn(split(q)), turn(split(k)), split(v)
    p = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + mask)
    return (p @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)


def model(name, layers, length, head):
    """A function of an input and parameters for given nonlinear functions, and both."""
    rng, shape = np.random.default_rng(11), SHAPES[name]
    d, f, heads = shape["d"], shape["f"], shape["heads"]

    def weight(*sizes):
        return rng.standard_normal(sizes, dtype=np.float32) * np.float32(0.02)

    causal = np.triu(np.full((length, length), MASKED, np.float32), 1)
    angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, d // heads, 2) * heads / d))
    cos, sin = (np.concatenate([g(angles)] * 2, -1).astype(np.float32) for g in (np.cos, np.sin))

    def rotary(t):
        a, b = jnp.split(t, 2, -1)
        return t * cos + jnp.concatenate([-b, a], -1) * sin

    def parameters():
        ones = np.ones(d, np.float32)
        if name == "llama":
            return {"g1": ones, "g2": ones, "q": weight(d, d), "k": weight(d, d), "v": weight(d, d), "o": weight(d, d),
                    "gate": weight(d, f), "up": weight(d, f), "down": weight(f, d)}
        return {"g1": ones, "b1": weight(d), "g2": ones, "b2": weight(d), "qkv": weight(d, 3 * d), "qkvb": weight(3 * d),
                "o": weight(d, d), "ob": weight(d), "up": weight(d, f), "upb": weight(f), "down": weight(f, d), "downb": weight(d)}

    def layer(x, p, of):
        if name == "llama":
            y = rms_norm(x, p["g1"])
            x = x + attention(y @ p["q"], y @ p["k"], y @ p["v"], heads, causal, of["softmax"], rotary) @ p["o"]
            y = rms_norm(x, p["g2"])
            return x + (of["silu"](y @ p["gate"]) * (y @ p["up"])) @ p["down"]

        def attended(y):
            q, k, v = jnp.split(y @ p["qkv"] + p["qkvb"], 3, -1)
            mask = causal if name == "gpt2" else 0.0
            return attention(q, k, v, heads, mask, of["softmax"]) @ p["o"] + p["ob"]

        def mlp(y):
            return of["gelu"](y @ p["up"] + p["upb"]) @ p["down"] + p["downb"]

        if name == "gpt2":
            x = x + attended(layer_norm(x, p["g1"], p["b1"]))
            return x + mlp(layer_norm(x, p["g2"], p["b2"]))
        x = layer_norm(x + attended(x), p["g1"], p["b1"])
        return layer_norm(x + mlp(x), p["g2"], p["b2"])

    given = {"layers": [parameters() for _ in range(layers)]}
    if head:
        given |= {"head": weight(shape["vocab"], d), "g": np.ones(d, np.float32), "b": weight(d)}
    x = rng.standard_normal((length, d), dtype=np.float32)

    def run(of):
        def whole(x, given):
            for p in given["layers"]:
                x = layer(x, p, of)
            if head:
                x = x[-1:]
                x = rms_norm(x, given["g"]) if name == "llama" else layer_norm(x, given["g"], given["b"])
                x = x @ given["head"].T
            return x

        return whole

    return run, x, given


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="gpt2", choices=list(SHAPES))
    arguments.add_argument("--layers", type=int, default=1)
    arguments.add_argument("--seq", type=int, default=64)
    arguments.add_argument("--head", default="none", choices=["none", "last"])
    arguments.add_argument("--protocol", default="ABY3", choices=list(PARTIES))
    arguments.add_argument("--runs", type=int, default=2, help="timed runs, of which the quickest counts")
    asked = arguments.parse_args()
    run, x, given = model(asked.model, asked.layers, asked.seq, asked.head == "last")
    cluster = Cluster(asked.protocol)
    from spu.utils import frontend

    leaves, _ = jax.tree_util.tree_flatten((x, given))
    names = [f"in{i}" for i in range(len(leaves))]
    options = cluster.spu.CompilerOptions()
    options.enable_optimize_denominator_with_broadcast = True
    secret = [cluster.spu.Visibility.VIS_SECRET] * len(leaves)
    program, _ = frontend.compile(
        frontend.Kind.JAX, run(PUMA), (x, given), {}, names, secret, lambda outs: [f"out{i}" for i in range(len(outs))],
        copts=options,
    )
    for name, leaf in zip(names, leaves):
        cluster.share(name, leaf)
    program, best = program.SerializeToString(), None
    for _ in range(asked.runs):
        took = cluster.ask([("run", program)] * len(cluster.parties))
        seconds, sent = max(t for t, _ in took), sum(s for _, s in took)
        print(f"run: {seconds:.2f} s", file=sys.stderr)
        best = min(best or (seconds, sent), (seconds, sent))
    error = np.max(np.abs(np.asarray(cluster.opened("out0")) - np.asarray(jax.jit(run(EXACT))(x, given))))
    cluster.close()
    print(f"| {best[0]:.2f} | {best[1] / 1e9:.2f} GB | {error:.1e} |")


if __name__ == "__main__":
    main()
