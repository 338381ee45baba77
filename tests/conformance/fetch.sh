#!/usr/bin/env bash
# Fetches the node tests of the ONNX project into FOLDER, by default `target/conformance`: one folder a test.
# Nothing of them is part of this repository.
set -euo pipefail
folder=${1:-"$(dirname "$0")/../../target/conformance"}
# Later wheels come without the data.
version=1.22.0
data=onnx/backend/test/data/node
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ ! -f "$folder/complete-$version" ]; then
    # The data are the same in every wheel: one is named, whatever machine this is.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --implementation cp --python-version 3.11 --platform manylinux_2_28_x86_64 \
        --dest "$folder/wheel" "onnx==$version"
    python3 - "$folder" "$data" <<'PYTHON'
import pathlib, sys, zipfile
folder, data = pathlib.Path(sys.argv[1]), sys.argv[2] + "/"
(wheel,) = (folder / "wheel").glob("onnx-*.whl")
with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder, [name for name in archive.namelist() if name.startswith(data)])
PYTHON
    touch "$folder/complete-$version"
fi
echo "$folder/$data"
