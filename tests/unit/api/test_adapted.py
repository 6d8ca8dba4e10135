from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import UsageError
from outpace.errors import WeightsError
from tests.adapters import entries_of, shapes_of, values, write
from tests.folder import make_folder


def load(folder: Path, **options: Any) -> outpace.LanguageModel:
    return outpace.load(folder, ops="reference", threads=1, kv="f32", **options)


@pytest.fixture(scope="module")
def plain(folder: Path) -> outpace.LanguageModel:
    return load(folder)


def adapter(folder: Path, path: Path, plain: outpace.LanguageModel, **changed: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    entries = entries_of(
        **{"target.vocabulary": plain.tokenizer.fingerprint, "target.vocab_size": config["vocab_size"]}
    )
    entries = {name: value for name, value in (entries | changed).items() if value is not None}
    return write(path / "adapter.gguf", values(shapes_of(config)), entries)


def test_an_adapter_for_diffusion_changes_what_is_refined_and_nothing_else(
    folder: Path, tmp_path: Path, plain: outpace.LanguageModel
) -> None:
    lm = load(folder, adapter=adapter(folder, tmp_path, plain))
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    expected = plain.generate("the cat", strategy="none", **options)
    assert lm.generate("the cat", strategy="none", **options).tokens == expected.tokens
    refined = lm.generate("the cat", strategy="block_diffusion", **options)
    badly = plain.generate("the cat", strategy="block_diffusion", block=4, **options)
    assert refined.tokens != badly.tokens
    assert (refined.lossless, refined.verification, refined.stats.warnings) == (False, "none", [])
    assert "was not trained to fill masks" in badly.stats.warnings[0]
    verified = lm.generate("the cat", strategy="block_diffusion", verified=True, **options)
    assert (verified.tokens, verified.lossless, verified.verification) == (expected.tokens, True, "exact")
    assert lm.loaded.fingerprint == plain.loaded.fingerprint


def test_an_adapter_for_jacobi_decoding_makes_another_model(
    folder: Path, tmp_path: Path, plain: outpace.LanguageModel
) -> None:
    gone = {"mask_token": None, "block": None, "shift": None}
    path = adapter(folder, tmp_path, plain, kind="jacobi", context="adapted", **gone)
    lm = load(folder, adapter=path)
    assert lm.loaded.fingerprint != plain.loaded.fingerprint
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    text = lm.generate("the cat", strategy="none", **options)
    assert text.tokens != plain.generate("the cat", strategy="none", **options).tokens
    assert lm.generate("the cat", strategy="jacobi", **options).tokens == text.tokens
    assert text.lossless


def test_an_adapter_of_another_model_is_refused(folder: Path, tmp_path: Path, plain: outpace.LanguageModel) -> None:
    path = adapter(folder, tmp_path, plain, **{"target.width": 64})
    with pytest.raises(UsageError, match="its width is 48, must be 64"):
        load(folder, adapter=path)


def test_a_folder_says_how_it_fills_masks(folder: Path, tmp_path: Path) -> None:
    own = make_folder(tmp_path / "own", outpace_diffusion={"mask_token_id": 3, "block": 5, "shift": 0})
    filling = load(own).loaded.filling
    assert (filling.mask_token, filling.block, filling.shift, filling.is_trained) == (3, 5, 0, True)
    untrained = load(folder).loaded.filling
    assert (untrained.mask_token, untrained.block, untrained.is_trained) == (1, 8, False)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"mask_token_id": 3, "block": 5}, "must have the keys mask_token_id, block, shift"),
        ({"mask_token_id": 3, "block": 0, "shift": 0}, r"block must be in \[1, 4096\], is 0"),
        ({"mask_token_id": 999, "block": 4, "shift": 0}, r"mask_token_id must be in \[0, "),
    ],
)
def test_a_folder_that_says_nonsense_is_refused(tmp_path: Path, stated: dict[str, int], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load(make_folder(tmp_path / "own", outpace_diffusion=stated))
