#!/usr/bin/env bash
# Installs the package into an environment of its own and runs its tests there, with compiler and runtime from `target/debug` or from OMBRA
# and its folder.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
environment=$CARGO_TARGET_DIR/finetune
# PyTorch is large: the environment stays until the list changes.
if ! cmp -s requirements.txt "$environment/installed"; then
    rm -rf "$environment"
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$environment/installed"
fi
"$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall "$root/examples/finetune"
[ -n "${OMBRA:-}" ] || (cd "$root" && cargo build --locked --bin ombra --bin ombra-run)
export OMBRA=${OMBRA:-$CARGO_TARGET_DIR/debug/ombra}
export OMBRA_RUN=${OMBRA_RUN:-$(dirname "$OMBRA")/ombra-run} PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
tests=$PWD/tests
# From another folder, so that what was installed is tested.
cd "$environment"
"$environment/bin/python" -m pytest -q -p no:cacheprovider "$tests"
