#!/usr/bin/env bash
# Build the native ops with AddressSanitizer and UndefinedBehaviorSanitizer beside the everyday build, and run their
# tests on it, once for each instruction set of this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
PIP_CONSTRAINT=constraints.txt "$python" -m pip install --quiet cmake ninja nanobind
PATH=$PWD/.venv/bin:$PATH cmake -S . -B build/sanitize -G Ninja -DOUTPACE_SANITIZE=ON -DPython_EXECUTABLE="$python"
PATH=$PWD/.venv/bin:$PATH cmake --build build/sanitize
PATH=$PWD/.venv/bin:$PATH cmake --install build/sanitize --prefix build/sanitize/site > /dev/null
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')

# -S: the editable install's finder would otherwise win over the instrumented package.
instrumented() {
  LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so.6)" \
    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$PWD/build/sanitize/site:$site "$python" -S "$@"
}

best=$(instrumented -c 'from outpace.ops.native import _native as n; assert "/sanitize/" in n.__file__, n; print(n.isa())')
# --capture=sys leaves the sanitizers their stderr: a report ends the process, and pytest would take it along.
# With OUTPACE_ISA the tests do not run themselves again for other sets, which they would do without -S.
for isa in baseline avx2 avx512; do
  OUTPACE_ISA=$isa instrumented -m pytest -o pythonpath=. --capture=sys \
    -k 'not [reference' tests/contracts/test_ops.py tests/contracts/test_sampling.py tests/unit/ops/native
  if [ "$isa" = "$best" ]; then break; fi
done

# Where threads race for work, under ThreadSanitizer.
g++ -std=c++20 -O1 -g -fsanitize=thread -pthread -Isrc/outpace/ops/native/src tests/unit/ops/native/pieces.cpp -o build/pieces
build/pieces
