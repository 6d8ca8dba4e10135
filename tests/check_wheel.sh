#!/usr/bin/env bash
# Build the wheel and the sdist, install the wheel where there is no compiler, and run the first commands from it.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_CONSTRAINT=$PWD/constraints.txt PIP_BUILD_CONSTRAINT=$PWD/constraints.txt
.venv/bin/python -m pip install --quiet build
.venv/bin/python -m build --outdir "$work/dist" > "$work/build.log" || { tail -40 "$work/build.log"; exit 1; }
ls -l "$work"/dist | awk 'NR > 1 { printf "%.2f MB  %s\n", $5 / 1e6, $9 }'

"$(command -v python3)" -m venv "$work/venv"
mkdir "$work/nothing"  # whoever looks for a compiler finds none
PATH=$work/nothing CC=none CXX=none "$work/venv/bin/python" -m pip install --quiet --only-binary :all: "$work"/dist/*.whl
cp -r tests "$work/tests"
(cd "$work" && "$work/venv/bin/python" -I tests/installed.py)
du -sm "$work/venv" | awk '{ print $1 " MB: the environment, pip and setuptools in it" }'
