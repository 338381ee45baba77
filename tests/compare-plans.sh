#!/usr/bin/env bash
# Says which plans differ between two builds of the compiler: every model of tests/data, in every setting with secrets.
# Run it before and after a change that is to leave plans as they are.
#   tests/compare-plans.sh OLD-OMBRA NEW-OMBRA [PATTERN]
set -euo pipefail
old=$(realpath "$1") new=$(realpath "$2") pattern=${3:-.}
cd "$(dirname "$0")/data"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The digest of every file that a compilation writes, or its error.
digest() {
    rm -rf "$work/plan"
    "$@" -o "$work/plan" >"$work/said" 2>&1 || { tail -n 3 "$work/said"; return; }
    (cd "$work/plan" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

differ=0 count=0
while read -r model; do
    base=()
    folder=$(dirname "$model")
    [[ $folder != */base && -f $folder/../base/model.onnx ]] && base=(--base "$folder/../base/model.onnx")
    for setting in 3pc 2pc-dealer; do
        arguments=(compile "$model" "${base[@]}" --setting "$setting" --self-test 0)
        before=$(digest "$old" "${arguments[@]}") after=$(digest "$new" "${arguments[@]}")
        count=$((count + 1))
        if [[ $before != "$after" ]]; then
            differ=$((differ + 1))
            echo "$model in $setting"
            diff <(echo "$before") <(echo "$after") | sed 's/^/    /' || true
        fi
    done
done < <(find . -name model.onnx | sort | grep -E -- "$pattern")
echo "$differ of $count plans differ"
[[ $differ == 0 ]]
