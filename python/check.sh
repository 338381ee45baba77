#!/usr/bin/env bash
# Builds the Python package from this folder, installs it into a fresh environment and runs its tests there.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd .. && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
environment=$CARGO_TARGET_DIR/python
rm -rf "$environment"
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet --disable-pip-version-check "$root/python"
OMBRA_DATA=$root/tests/data/models "$environment/bin/python" -W error -m unittest discover -s tests -v
