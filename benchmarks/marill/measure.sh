#!/usr/bin/env bash
# A small LLaMA in the forms of MPC-friendly fine-tuning, run between processes of this machine: bytes, rounds and time of a
# prompt and of further tokens. Usage: [SETTING=2pc] [WIDTH=256] [LAYERS=4] [PROMPT=128] benchmarks/marill/measure.sh [FOLDER]
# [NETWORK]; the folder gets models, plans, reports and a table on standard output.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-out/marill}
network=${2:-none}
prompt=${PROMPT:-128}
layers=${LAYERS:-4}
setting=${SETTING:-3pc}
width=${WIDTH:-256}
mkdir -p "$folder"
bin=${BIN:-target/release}
[ -n "${BIN:-}" ] || cargo build --release -p ombra-compiler -p ombra-runtime -p ombra-examples
shape=(--layers "$layers" --hidden "$width" --heads 8 --kv-heads 8 --ff $((width * 43 / 16)) --vocab 2000)
half=$((layers / 2))
tokens=$(for i in $(seq 0 $((prompt - 1))); do echo $((i * 7919 % 2000)); done | paste -sd,)
"$bin/generate-model" llama "${shape[@]}" -o "$folder/base.onnx"
run() {
    local name=$1
    shift
    "$bin/generate-model" llama "${shape[@]}" "$@" -o "$folder/$name.onnx"
    "$bin/ombra" compile "$folder/$name.onnx" --setting "$setting" "${compile[@]}" -o "$folder/$name" > /dev/null 2> "$folder/$name.log"
    "$bin/ombra-run" local "$folder/$name" --tokens "$tokens" -n 3 --network "$network" --report "$folder/$name.json" > /dev/null
}
base=(--base "$folder/base.onnx")
compile=()
run full
run merged --merged 4
compile=("${base[@]}")
run frozen --tuned-from "$half"
run lora --lora 16
run frozen-merged --tuned-from "$half" --merged 4
compile=(--softmax 2relu)
run merged-2relu --merged 4
compile=("${base[@]}" --softmax 2relu)
run frozen-merged-2relu --tuned-from "$half" --merged 4
python3 - "$folder" << 'PY'
import json, sys
folder = sys.argv[1]
rows = ["full", "frozen", "lora", "merged", "frozen-merged", "merged-2relu", "frozen-merged-2relu"]
full = None
print("| form | prompt: bytes | x | rounds | seconds | x | token: bytes | x | rounds | seconds | x |")
print("|---|---|---|---|---|---|---|---|---|---|---|")
for name in rows:
    report = json.load(open(f"{folder}/{name}.json"))
    phases = {}
    for phase in report["phases"]:
        phases.setdefault(phase["name"], phase)
    cells = []
    numbers = []
    for step in ["prefill", "decode"]:
        phase = phases[step]
        for kind in ["predicted", "measured"]:
            numbers.append(sum(party[kind] for party in phase["bytes"].values()))
        assert numbers[-1] == numbers[-2], "predicted and measured bytes differ"
        numbers[-2:] = [numbers[-1], phase["rounds"]["measured"], phase["seconds"]]
    full = full or numbers
    x = lambda i: f"{full[i] / numbers[i]:.2f}"
    print(f"| {name} | {numbers[0]:,} | {x(0)} | {numbers[1]} | {numbers[2]:.2f} | {x(2)} "
          f"| {numbers[3]:,} | {x(3)} | {numbers[4]} | {numbers[5]:.3f} | {x(5)} |")
PY
