#!/usr/bin/env bash
# Runs every fuzz target for a bounded time, from a seed corpus of small models.
# usage: fuzz/run.sh [SECONDS] [TARGET…]; needs a nightly toolchain and cargo-fuzz (cargo install cargo-fuzz).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(onnx compile mpcir plan)

command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 2; }
cargo +nightly --version >/dev/null || { echo "a nightly toolchain is missing: rustup toolchain install nightly" >&2; exit 2; }

corpus=fuzz/corpus
mkdir -p "$corpus"/{onnx,compile,mpcir,plan}
for model in gpt2 llama; do
    out=$(mktemp -d)
    cp "tests/data/small/$model.onnx" "$corpus/onnx/$model"
    cp "tests/data/small/$model.onnx" "$corpus/compile/$model"
    cargo run --quiet --locked --bin ombra -- compile "tests/data/small/$model.onnx" --max-failure 0 \
        --emit "lowered=$corpus/mpcir/$model-lowered" --emit "scheduled=$corpus/mpcir/$model" -o "$out" 2>/dev/null
    cp "$out/public/plan.ombra" "$corpus/plan/$model"
    rm -r "$out"
done
find tests/filetests -name '*.mpcir' | while read -r file; do cp "$file" "$corpus/mpcir/$(basename "$file")"; done

for target in "${targets[@]}"; do
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 -max_len=65536 \
        -print_final_stats=1
done
