#!/usr/bin/env bash
# Predicted beside measured time, between three processes of this machine, without and with emulated networks: GPT-2
# small's shape with random weights, and a small trained model with a public base.
# Usage: benchmarks/predicted-time.sh [FOLDER]; the folder gets models, plans, the machine's profile and reports.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-out/predicted-time}
mkdir -p "$folder"
cargo build --release -p ombra-compiler -p ombra-runtime -p ombra-examples -p ombra-bench --bins
bin=${CARGO_TARGET_DIR:-target}/release
gpt2=$folder/gpt2-small
[ -f "$gpt2.onnx" ] || "$bin/generate-model" gpt2 --layers 12 --hidden 768 --heads 12 --vocab 50257 --positions 1024 -o "$gpt2.onnx"
"$bin/ombra" compile "$gpt2.onnx" -o "$gpt2" >/dev/null 2>&1
models=tests/data/models/llama-trained
"$bin/ombra" compile $models/frozen/model.onnx --base $models/base/model.onnx -o "$folder/frozen" >/dev/null 2>&1
"$bin/ombra-run" measure > "$folder/machine.json"
tokens=$(for i in $(seq 0 63); do echo $((i * 7919 % 50257)); done | paste -sd,)
small=$(for i in $(seq 0 63); do echo $((i * 79 % 300)); done | paste -sd,)
for network in none lan wan; do
    "$bin/ombra-run" local "$gpt2" --tokens "$tokens" -n 4 --network $network --report "$gpt2-$network.json" >/dev/null
    "$bin/ombra-run" local "$folder/frozen" --tokens "$small" -n 6 --network $network --report "$folder/frozen-$network.json" >/dev/null
done
echo "GPT-2 small's shape, all private"
"$bin/predicted-time" "$gpt2" "$folder/machine.json" "$gpt2"-{none,lan,wan}.json
echo "llama-trained/frozen against its base"
"$bin/predicted-time" "$folder/frozen" "$folder/machine.json" "$folder"/frozen-{none,lan,wan}.json
