#!/usr/bin/env bash
# Times ring products on this machine's graphics processor beside its processor, and writes a table of a few minutes' work.
#
#   benchmarks/gpu.sh [--tiny] [FILE]
#
# The table goes to standard output, and to FILE. With --tiny sizes are small, for a driver that computes on the processor:
# set OMBRA_GPU_SOFTWARE=1 for that.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
sizes=()
if [ "${1:-}" = --tiny ]; then
    sizes=(--tiny)
    shift
fi
table=$(cargo run --locked --release --quiet --package ombra-gpu --bin gpu-products -- "${sizes[@]}")
echo "$table"
if [ -n "${1:-}" ]; then
    cd "$here"
    echo "$table" >"$1"
fi
