"""Which other engines there are, and which of them the virtual environments given hold."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Engine -> variants. A variant's part after "-" is the number format that weights are turned into.
VARIANTS: dict[str, tuple[str, ...]] = {
    "llama_cpp": ("plain", "lookup"),
    "onnxruntime_genai": ("plain",),
    "openvino_genai": ("plain", "lookup"),
    "transformers": ("plain-f32", "plain-bf16", "lookup-bf16", "assisted-bf16"),
}


@dataclass(frozen=True, slots=True)
class Absent:
    """An engine or variant that was not measured, and why."""

    engine: str
    variant: str
    reason: str


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine that can be started: with which Python, on which model."""

    engine: str
    variant: str
    python: Path
    model: Path
    draft: Path | None = None


def find_peers(
    venvs: Sequence[Path], model: Path, converted: dict[str, Path], draft: Path | None
) -> tuple[list[Peer], list[Absent]]:
    """Return the peers that the venvs hold, and what is missing.

    converted: engine -> folder with the model in that engine's own format (else it is given `model` itself).
    """
    homes = {engine: python for venv in reversed(venvs) for engine, python in _installed(venv).items()}
    peers: list[Peer] = []
    absent: list[Absent] = []
    for engine, variants in VARIANTS.items():
        for variant in variants:
            if engine not in homes:
                absent.append(Absent(engine, variant, "not installed in the venvs given"))
            elif engine == "onnxruntime_genai" and engine not in converted:
                absent.append(Absent(engine, variant, "needs a converted model: give --onnx FOLDER"))
            elif variant.startswith("assisted") and draft is None:
                absent.append(Absent(engine, variant, "needs a smaller model: give --draft-model"))
            else:
                peers.append(Peer(engine, variant, homes[engine], converted.get(engine, model), draft))
    return peers, absent


def _installed(venv: Path) -> dict[str, Path]:
    """Return the engines that a venv has, with its Python."""
    python = venv / "bin" / "python"
    if not python.exists():
        return {}
    probe = f"import importlib.util as u; print([e for e in {list(VARIANTS)!r} if u.find_spec(e)])"
    done = subprocess.run([str(python), "-c", probe], check=True, capture_output=True, text=True)
    return {engine: python for engine in VARIANTS if repr(engine) in done.stdout}
