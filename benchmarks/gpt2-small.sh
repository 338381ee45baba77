#!/usr/bin/env bash
# GPT-2 small's shape with random weights, all private: prefill of 64 tokens and 4 decode steps between three processes
# of this machine. Usage: benchmarks/gpt2-small.sh [FOLDER]; the folder gets the model, the plan and the report.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-out/gpt2-small}
mkdir -p "$folder"
cargo build --release -p ombra-compiler -p ombra-runtime -p ombra-examples
[ -f "$folder/model.onnx" ] || cargo run --release --bin generate-model -- gpt2 --layers 12 --hidden 768 --heads 12 \
    --vocab 50257 --positions 1024 -o "$folder/model.onnx"
target/release/ombra compile "$folder/model.onnx" -o "$folder/plan"
tokens=$(for i in $(seq 0 63); do echo $((i * 7919 % 50257)); done | paste -sd,)
target/release/ombra-run local "$folder/plan" --tokens "$tokens" -n 5 --report "$folder/report.json"
