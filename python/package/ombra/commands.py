"""The commands `ombra` and `ombra-run`; run as a file, the latter: a client starts its parties with it."""

import os
import sys

from ombra import _ombra


def compiler():
    """`ombra`."""
    sys.exit(_ombra.run_compiler(["ombra", *sys.argv[1:]]))


def runtime():
    """`ombra-run`."""
    program = (sys.executable, [os.path.abspath(__file__)])
    sys.exit(_ombra.run_runtime(["ombra-run", *sys.argv[1:]], program))


if __name__ == "__main__":
    runtime()
