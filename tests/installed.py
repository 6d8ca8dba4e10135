"""What an installed package must do with its own dependencies only; runs without pytest, in any environment.

python tests/installed.py
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.*, not for src

import outpace
from outpace.drafters import NGram
from outpace.ops.native import NativeOps
from tests.decoding import decode, tiny_runner


def main() -> None:
    """Check the native module, a drafted text and the command line; print what was found."""
    assert "site-packages" in str(outpace.__file__), f"{outpace.__file__} is not installed"
    ops = NativeOps(threads=2)
    options = {"max_new_tokens": 60, "temperature": 0.7, "seed": 1}
    [plain] = decode(tiny_runner(ops=ops, kv="bf16"), [[1, 2, 3, 1, 2]], **options)
    [drafted] = decode(tiny_runner(ops=ops, kv="bf16"), [[1, 2, 3, 1, 2]], drafter=NGram(min_ngram=1), **options)
    assert drafted.tokens == plain.tokens
    command = str(Path(sys.executable).with_name("outpace"))
    for argument, expected in (("--version", outpace.__version__), ("models", "smollm2-135m")):
        done = subprocess.run([command, argument], check=True, capture_output=True, text=True)
        assert expected in done.stdout
    extras = [name for name in ("torch", "transformers", "matplotlib", "pytest") if importlib.util.find_spec(name)]
    print(
        f"outpace {outpace.__version__} on Python {sys.version.split()[0]}, native ops {ops.isa}, beside it: {extras}"
    )


if __name__ == "__main__":
    main()
