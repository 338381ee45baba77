#!/usr/bin/env bash
# The client's gateway as its users meet it: OpenAI's own Python client, curl, and the page in a headless browser, with three
# processes of the parties, from the programs in `target/debug`. Installs what it needs: Python packages into `target/gateway`, a browser where there is none.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=target/gateway

install() {
    local sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo -n)
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}

command -v curl >/dev/null || install curl
command -v chromium >/dev/null && command -v chromedriver >/dev/null || install chromium chromium-driver
if ! cmp -s tests/gateway/requirements.txt "$work/installed"; then
    rm -rf "$work"
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/gateway/requirements.txt
    cp tests/gateway/requirements.txt "$work/installed"
fi
"$work/venv/bin/python" tests/gateway/check.py target/debug
