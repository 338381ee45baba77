"""Private language models on private prompts, by secure multi-party computation.

>>> import ombra
>>> ombra.compile("my-model/", base="base-model/", output="out/")
>>> with ombra.Client("out/") as client:
...     for piece in client.generate("The value of", max_tokens=16):
...         print(piece, end="")
"""

import json as _json
import os as _os
import sys as _sys
import tempfile as _tempfile

from . import _ombra, commands as _commands
from ._ombra import OmbraError, __version__

__all__ = ["Answer", "Client", "OmbraError", "__version__", "compile", "inspect"]


def compile(model, *, output, progress=None, **options):
    """Compile a model into a plan folder, and return the report as a dict.

    Options are those of `ombra compile`, with underscores: ``base``, ``public``, ``private``, ``reveal``, ``max``, ``dim``,
    ``softmax`` and so on. A list repeats an option, a dict gives its NAME=VALUE pairs, True gives it without a value.
    ``progress(row, part)`` hears how far the self-test is.
    """
    arguments = [_os.fspath(model), "--output", _os.fspath(output)]
    for name, value in options.items():
        arguments += _option("--" + name.replace("_", "-"), value)
    with _tempfile.TemporaryDirectory() as folder:
        report = options.get("report") or _os.path.join(folder, "report.json")
        if "report" not in options:
            arguments += ["--report", report]
        _ombra.compile(arguments, progress)
        with open(report, encoding="utf-8") as file:
            return _json.load(file)


def _option(name, value):
    if value is None or value is False:
        return []
    if value is True:
        return [name]
    if isinstance(value, dict):
        return [part for key, each in value.items() for part in (name, f"{key}={each}")]
    if isinstance(value, (list, tuple)):
        return [part for each in value for part in _option(name, each)]
    return [name, _os.fspath(value) if isinstance(value, _os.PathLike) else str(value)]


def inspect(folder, **sizes):
    """Costs of one step of a plan at given sizes, such as ``seq=64``, as a dict."""
    return _json.loads(_ombra.inspect_plan(_os.fspath(folder), sizes))


class Answer:
    """Text that comes piece by piece: iterate over it.

    ``text``, ``tokens`` and ``finish_reason`` ("stop" or "length") grow with it. Leaving the loop early and deleting the
    answer, or :meth:`cancel`, ends it after the token under way.
    """

    def __init__(self, inner, progress):
        self._inner = inner
        self._progress = progress
        self.text = ""
        self.tokens = []
        self.finish_reason = None

    def __iter__(self):
        return self

    def __next__(self):
        while self.finish_reason is None:
            kind, content = self._inner.next()
            if kind == "text" and content:
                self.text += content
                return content
            if kind == "token":
                self.tokens.append(int(content))
            elif kind == "end":
                self.finish_reason = content
            elif kind == "progress" and self._progress is not None:
                self._progress(_json.loads(content))
        raise StopIteration

    def result(self):
        """Wait for the end, and return the whole text."""
        for _ in self:
            pass
        return self.text

    def cancel(self):
        """End the answer after the token under way."""
        self._inner.cancel()

    def __del__(self):
        inner = getattr(self, "_inner", None)
        if inner is not None:
            inner.cancel()


class Client:
    """The client of a plan folder, as a context manager.

    ``config`` is the client's configuration; without one, all parties run on this machine as processes of this Python.
    """

    def __init__(self, folder, *, config=None, network="none", threads=None, allow_public=()):
        # By its file: with its name, Python would look for modules in the working directory first.
        program = (_sys.executable, [_os.path.abspath(_commands.__file__)])
        config = None if config is None else _os.fspath(config)
        self._inner = _ombra.Client(
            _os.fspath(folder), config, network, threads, list(allow_public), program
        )
        #: The report of the last :meth:`infer`, as a dict.
        self.report = None

    def generate(self, prompt, **options):
        """Continue a prompt, given as text or as token ids. Options as in :meth:`chat`."""
        if isinstance(prompt, str):
            return self._start(prompt, None, None, **options)
        return self._start(None, [int(token) for token in prompt], None, **options)

    def chat(self, messages, **options):
        """Answer a chat, a list of ``{"role": ..., "content": ...}``, in the model's own template.

        ``max_tokens``, ``stop`` (strings), ``stop_tokens`` (ids), ``temperature``, ``top_k``, ``top_p``,
        ``presence_penalty``, ``frequency_penalty``, and ``progress(event)``, which hears of every step as a dict. A
        temperature of 0 chooses the most probable token.
        """
        return self._start(None, None, [(m["role"], m["content"]) for m in messages], **options)

    def _start(
        self,
        prompt,
        tokens,
        messages,
        *,
        max_tokens=None,
        stop=(),
        stop_tokens=(),
        temperature=0.0,
        top_k=None,
        top_p=None,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        progress=None,
    ):
        stop = [stop] if isinstance(stop, str) else list(stop)
        sampling = (temperature, top_k, top_p) if temperature > 0 else None
        if sampling is None and (top_k is not None or top_p is not None):
            raise ValueError("top_k and top_p need a temperature above 0")
        inner = self._inner.start(
            prompt,
            tokens,
            messages,
            max_tokens,
            stop,
            list(stop_tokens),
            sampling,
            (presence_penalty, frequency_penalty),
        )
        return Answer(inner, progress)

    def infer(self, inputs):
        """One step on named numpy arrays; the outputs by name."""
        import numpy

        given = [(name, *_crossing(name, array)) for name, array in inputs.items()]
        outputs, report = self._inner.infer(given)
        self.report = _json.loads(report)
        return {
            name: numpy.frombuffer(data, dtype=dtype).reshape(shape).copy()
            for name, dtype, shape, data in outputs
        }

    def close(self):
        """End the answer under way, the session, and parties that run on this machine."""
        self._inner.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _crossing(name, array):
    import numpy

    array = numpy.asarray(array)
    for kind, dtype in (("f", "float32"), ("iu", "int64"), ("b", "bool")):
        if array.dtype.kind in kind:
            array = numpy.ascontiguousarray(array.astype(numpy.dtype(dtype).newbyteorder("<")))
            return dtype, list(array.shape), array.tobytes()
    raise TypeError(f"{name}: expected an array of floats, integers or booleans, found {array.dtype}")
