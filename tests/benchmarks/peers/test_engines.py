from __future__ import annotations

from pathlib import Path

from benchmarks.peers.engines import find_peers


def test_what_a_venv_has_is_found_and_what_is_missing_is_told(venv: Path, tmp_path: Path) -> None:
    found, absent = find_peers([tmp_path, venv], Path("model.gguf"), {}, None)
    assert [(peer.engine, peer.variant) for peer in found] == [
        ("llama_cpp", "plain"), ("llama_cpp", "lookup"), ("openvino_genai", "plain"), ("openvino_genai", "lookup"),
    ]  # fmt: skip
    assert {a.engine for a in absent} == {"onnxruntime_genai", "transformers"}


def test_an_engine_gets_the_folder_that_was_converted_for_it(venv: Path) -> None:
    found, _ = find_peers([venv], Path("model.gguf"), {"openvino_genai": Path("converted")}, None)
    assert {(peer.engine, str(peer.model)) for peer in found} == {
        ("llama_cpp", "model.gguf"), ("openvino_genai", "converted"),
    }  # fmt: skip
