from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import LanguageModel, UsageError
from outpace.drafters.ngram import NGram
from tests.decoding import assert_all_free
from tests.folder import make_folder

OPS = "reference"  # the interface is the same with any


@pytest.fixture
def lm(folder: Path) -> LanguageModel:
    return outpace.load(folder, ops=OPS, threads=1)


def test_every_kind_of_prompt_gives_a_result(lm: LanguageModel) -> None:
    chat = [{"role": "user", "content": "hello"}]
    ids = lm.tokenizer.encode_chat(chat)
    assert lm.generate(chat, max_new_tokens=9).tokens == lm.generate(ids, max_new_tokens=9).tokens
    text = lm.generate("the cat", max_new_tokens=9)
    assert text.tokens == lm.generate(lm.tokenizer.encode("the cat"), max_new_tokens=9).tokens
    assert text.text == lm.tokenizer.decode(text.tokens)
    assert_all_free(lm.runner)


def test_a_model_and_its_results_print_as_what_they_are(lm: LanguageModel, folder: Path) -> None:
    assert repr(lm) == (
        f"<LanguageModel {folder}: llama, {lm.num_bytes / 1e6:.0f} MB, reference ops, keys and values in bf16, "
        "context 2,048>"
    )
    result = lm.generate("the cat", max_new_tokens=4)
    assert str(result) == result.text


def test_a_batch_gives_a_list_and_equals_single_calls(lm: LanguageModel) -> None:
    prompts: list[Any] = ["the cat", [5, 6, 7], [{"role": "user", "content": "hi"}]]
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "seed": 4}
    batch = lm.generate(prompts, **options)
    assert [r.tokens for r in batch] == [lm.generate(p, **options).tokens for p in prompts]


def test_n_samples_come_as_a_list_and_in_a_batch_as_lists(lm: LanguageModel) -> None:
    one = lm.generate("the cat", n=3, temperature=1.0, seed=1, max_new_tokens=12)
    two = lm.generate(["the cat", "a dog"], n=3, temperature=1.0, seed=1, max_new_tokens=12)
    assert [r.tokens for r in one] == [r.tokens for r in two[0]]
    assert len({tuple(r.tokens) for r in one}) == 3
    assert [len(group) for group in two] == [3, 3]


@pytest.mark.parametrize(
    "strategy", ["recompute", "ngram", "suffix", "lookahead", "jacobi", "combined", "ngram+suffix", NGram()]
)
def test_every_strategy_writes_plain_decodings_text(lm: LanguageModel, strategy: Any) -> None:
    plain = lm.generate("the cat sat on the", max_new_tokens=40, strategy="none", ignore_eos=True)
    other = lm.generate("the cat sat on the", max_new_tokens=40, strategy=strategy, ignore_eos=True)
    assert other.tokens == plain.tokens
    assert other.lossless


def test_a_prediction_and_a_draft_model_draft(lm: LanguageModel, folder: Path) -> None:
    plain = lm.generate("the cat", max_new_tokens=40, strategy="none", ignore_eos=True)
    predicted = lm.generate(
        "the cat", max_new_tokens=40, strategy="prediction", prediction=plain.tokens, ignore_eos=True
    )
    drafted = lm.generate(
        "the cat", max_new_tokens=40, strategy="draft_model", draft_model=str(folder), ignore_eos=True
    )
    assert predicted.tokens == drafted.tokens == plain.tokens
    assert predicted.stats.tokens_per_step > 4
    assert drafted.stats.accepted["draft_model"] == drafted.stats.proposed["draft_model"] > 0
    assert_all_free(lm.runner)


def test_a_draft_model_of_another_vocabulary_is_refused_with_both_counts(lm: LanguageModel, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", vocab=290)
    with pytest.raises(UsageError, match=r"another vocabulary \(290 tokens\).*\(320 tokens\)"):
        lm.generate("hi", strategy="draft_model", draft_model=str(other))


def test_calls_from_several_threads_do_not_mix(lm: LanguageModel) -> None:
    prompts = ["the cat", "a dog", "def f(x)", "1, 2, 3"]
    expected = [lm.generate(p, max_new_tokens=30).tokens for p in prompts]
    found: dict[int, list[int]] = {}

    def call(i: int) -> None:
        found[i] = lm.generate(prompts[i], max_new_tokens=30).tokens

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == expected
    assert_all_free(lm.runner)


def test_a_trace_tells_every_step_and_adds_up(lm: LanguageModel) -> None:
    result = lm.generate("the cat sat on the mat, the cat sat on", max_new_tokens=30, strategy="ngram", trace=True)
    assert result.trace is not None
    read = json.loads(result.trace.to_json())
    assert read["schema"] == 2
    assert [t for step in read["steps"] for t in step["tokens"]] == read["tokens"] == result.tokens
    assert "".join(read["pieces"]).startswith(result.text[:10])
    assert len(read["steps"]) == result.stats.steps
    assert lm.generate("hi", max_new_tokens=2).trace is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1}, "unknown option 'temprature': did you mean 'temperature'"),
        ({"strategy": "ngrams"}, "unknown strategy 'ngrams': did you mean 'ngram'"),
        ({"strategy": "none+ngram"}, "mixes plain decoding with drafters"),
        ({"top_p": 0.5}, "no effect at temperature 0"),
        ({"temperature": -1}, r"temperature must be in \[0, 10000\], got -1"),
        ({"temperature": 1e-9}, r"temperature must be 0 \(greedy\) or at least 0.001"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias of token 3 must be"),
        ({"top_p": 2, "temperature": 1}, r"top_p must be in \[0, 1\], got 2"),
        ({"max_new_tokens": 0}, r"max_new_tokens must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in"),
        ({"n": 0}, "n must be at least 1"),
        ({"stop": ""}, "stop must hold strings of at least one character"),
        ({"stop_tokens": [1000]}, r"stop_tokens has token ids outside this model's \[0, 320\)"),
        ({"logit_bias": {-1: 1.0}}, "token id of logit_bias must be in"),
        ({"strategy": "none", "max_draft": 4}, "max_draft has no effect"),
        ({"strategy": "ngram", "prediction": "x"}, "prediction=... is used by strategy 'prediction' only"),
        ({"strategy": "prediction"}, "give prediction=..."),
        ({"strategy": "draft_model"}, "give draft_model=..."),
        ({"strategy": "ngram", "verification": "rejection"}, "needs the distribution q of one drafter"),
        ({"verification": "coin"}, "unknown verification 'coin'"),
    ],
)
def test_what_cannot_work_is_refused_with_the_cure(lm: LanguageModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lm.generate("hi", **options)
    assert_all_free(lm.runner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv": "f16"}, "unknown kv format 'f16'"),
        ({"ops": "nativ"}, "unknown ops 'nativ': did you mean 'native'"),
        ({"threads": "2"}, "threads must be a whole number, got '2'"),
        ({"context": 64.0}, "context must be a whole number, got 64.0"),
        ({"context": 1}, "context must be at least 2, got 1"),
        ({"cache_tokens": "1000"}, "cache_tokens must be a whole number, got '1000'"),
        ({"kv": 8}, "kv format must be one of f32, bf16, int8, got 8"),
        ({"ops": 5}, 'ops must be "native", "reference" or an instance of one, got 5'),
        ({"quantize": 8}, "quantize must be one of q8_0, .*, q2_k, got 8"),
        ({"threads": 0}, r"threads must be in \[1, 1024\]"),
        ({"context": 10**6}, r"context must be in \[2, 2048\]"),
        ({"cache_tokens": 1}, "cache_tokens must be at least 64"),
        ({"quantize": "q8"}, "unknown quantize 'q8': did you mean 'q8_0'"),
        ({"quantize": "q8_0"}, "the reference ops compute in float32"),
    ],
)
def test_load_refuses_what_cannot_work(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        outpace.load(folder, **{"ops": OPS, **options})


def test_load_takes_a_name_or_a_path_only() -> None:
    for model in (5, None, b"x", ["x"]):
        with pytest.raises(UsageError, match="model must be a name or a path, got"):
            outpace.load(model)  # type: ignore[arg-type]


def test_options_are_checked_before_a_draft_model_is_loaded(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match=r"draft_model=\.\.\. is used by strategy 'draft_model' only"):
        lm.generate("hi", strategy="ngram", draft_model="/nowhere/at/all")


@pytest.mark.parametrize(
    ("n", "message"), [(0, "n must be at least 1"), (1.0, "n must be a whole"), (True, "n must be a")]
)
def test_n_is_a_whole_number(lm: LanguageModel, n: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lm.generate("hi", n=n)


def test_a_stop_string_may_spell_a_control_token(lm: LanguageModel) -> None:
    """The token is banned from ending the text by itself, and written where the stop string is looked for."""
    plain = lm.generate([5, 6, 7], max_new_tokens=8, ignore_eos=True, logit_bias={1: 1e4})
    assert (plain.tokens, plain.text) == ([1] * 8, "")
    cut = lm.generate([5, 6, 7], max_new_tokens=8, ignore_eos=True, logit_bias={1: 1e4}, stop="<|im_end|>")
    assert (cut.tokens, cut.text, cut.finish_reason) == ([], "", "stop")


def test_a_model_with_longrope_has_its_long_context_if_it_is_asked_for(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6}
    folder = make_folder(tmp_path / "phi", "phi3", rope_scaling=scaling, original_max_position_embeddings=64)
    short, long = outpace.load(folder, ops=OPS), outpace.load(folder, ops=OPS, context=65)
    assert (short.config.context, long.config.context) == (64, 2048)
    assert short.config.inv_freq[1] == pytest.approx(4 * long.config.inv_freq[1])
    assert short.config.rope_scale == long.config.rope_scale > 1
    with pytest.raises(UsageError, match=r"context must be in \[2, 2048\]"):
        outpace.load(folder, ops=OPS, context=2049)


def test_a_smaller_context_ends_the_text_sooner(folder: Path) -> None:
    lm = outpace.load(folder, ops=OPS, context=32)
    result = lm.generate("the cat", max_new_tokens=None, ignore_eos=True)
    assert result.finish_reason == "context"
    assert len(result.tokens) == 32 - len(lm.tokenizer.encode("the cat"))


def test_exported_names_exist_and_importing_stays_light() -> None:
    for name in outpace.__all__:
        assert hasattr(outpace, name)
    heavy = ["torch", "transformers", "typer", "rich", "jinja2", "matplotlib", "pydantic"]
    code = f"import sys, outpace; print([name for name in {heavy} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
