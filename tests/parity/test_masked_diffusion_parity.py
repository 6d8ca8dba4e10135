"""Masked-diffusion checkpoints against their published samplers, written down here over a dense network in float64.

LLaDA: arXiv:2502.09992, algorithm 5 (low-confidence remasking, semi-autoregressive blocks). Dream: arXiv:2508.15487,
the sampler of its model card (entropy order, times from 1 to 0.001, logits shifted by one).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import outpace
from outpace import UsageError
from outpace.errors import WeightsError
from outpace.models import open_checkpoint
from tests.folder import make_folder
from tests.implementations import MAKERS
from tests.refining import Dense, probabilities
from tests.tiny import tiny_values
from tests.unit.weights.tiny import CONFIG, tensors_of, write_gguf

MASK = 3
SIZES = {"mask_token_id": MASK, "hidden_size": 48}
PUBLISHED = {  # what LLaDA's config.json calls what ours call these
    "hidden_size": "d_model", "intermediate_size": "mlp_hidden_size", "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads", "hidden_act": "activation_type",
    "max_position_embeddings": "max_sequence_length", "tie_word_embeddings": "weight_tying",
}  # fmt: skip
FURTHER = {
    "block_type": "llama", "layer_norm_type": "rms", "rope": True, "alibi": False, "include_bias": False,
    "include_qkv_bias": False, "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False,
    "multi_query_attention": None, "clip_qkv": None, "attention_dropout": 0.0, "block_group_size": 1,
}  # fmt: skip


def published_name(name: str) -> str:
    """The name of a llama's tensor in a LLaDA folder."""
    fixed = {
        "model.embed_tokens.weight": "model.transformer.wte.weight",
        "model.norm.weight": "model.transformer.ln_f.weight",
        "lm_head.weight": "model.transformer.ff_out.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, *rest = name.removesuffix(".weight").split(".")
    own = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm", "self_attn.q_proj": "q_proj",
        "self_attn.k_proj": "k_proj", "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out",
        "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
    }[".".join(rest)]  # fmt: skip
    return f"model.transformer.blocks.{layer}.{own}.weight"


def llada(path: Path, **changes: Any) -> Path:
    """Write a tiny LLaDA as its folders are."""
    folder = make_folder(path, **SIZES)
    raw = json.loads((folder / "config.json").read_text())
    config = {PUBLISHED.get(name, name): value for name, value in raw.items()} | FURTHER | {"model_type": "llada"}
    config["embedding_size"] = config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config | changes))
    save_file({published_name(n): x for n, x in tiny_values(raw).items()}, folder / "model.safetensors")
    return folder


def dream(path: Path) -> Path:
    return make_folder(path, "Dream", **SIZES)


def dense(folder: Path) -> Dense:
    """The same numbers in the dense network."""
    raw = json.loads((folder / "config.json").read_text())
    network = Dense(raw["model_type"], vocab_size=raw["vocab_size"], mask_token_id=MASK)
    return network


def seen_by_all(network: Dense, tokens: list[int]) -> Any:
    return network.logits(tokens, range(len(tokens)), np.ones((len(tokens),) * 2, np.bool_))


def llada_sampler(network: Dense, prompt: list[int], length: int, steps: int, block: int) -> list[int]:
    """Greedy, low-confidence remasking: in each block, each step fixes its share of the surest predictions."""
    x = [*prompt, *[MASK] * length]
    done = [True] * len(prompt) + [False] * length
    for number in range(length // block):
        first = len(prompt) + number * block
        per_step, rest = divmod(block, steps // (length // block))
        for step in range(steps // (length // block)):
            p = probabilities(seen_by_all(network, x))
            guess, confidence = p.argmax(axis=1), p.max(axis=1)
            allowed = [i for i in range(first, first + block) if not done[i]]
            surest = sorted(allowed, key=lambda i: -confidence[i])[: per_step + (step < rest)]
            for i in surest:
                x[i], done[i] = int(guess[i]), True
    return x[len(prompt) :]


def dream_sampler(network: Dense, prompt: list[int], length: int, steps: int) -> list[int]:
    """Greedy, in the order of entropy: the number of tokens follows from the times of the noise schedule."""
    x = [*prompt, *[MASK] * length]
    done = [True] * len(prompt) + [False] * length
    times = np.linspace(1.0, 1e-3, steps + 1)
    for step in range(steps):
        logits = seen_by_all(network, x)
        p = probabilities(np.concatenate([logits[:1], logits[:-1]]))  # the row before predicts a position
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
        masked = [i for i in range(len(x)) if not done[i]]
        count = int(len(masked) * (1 - times[step + 1] / times[step])) if step < steps - 1 else len(masked)
        for i in sorted(masked, key=lambda i: entropy[i])[:count]:
            x[i], done[i] = int(p[i].argmax()), True
    return x[len(prompt) :]


@pytest.fixture(params=MAKERS)
def implementation(request: Any) -> Any:
    return MAKERS[request.param](1)


@pytest.mark.parametrize(("length", "steps", "block"), [(12, 12, 12), (12, 6, 4), (16, 6, 8), (9, 3, 3)])
def test_llada_writes_what_its_published_sampler_writes(
    tmp_path: Path, implementation: Any, length: int, steps: int, block: int
) -> None:
    folder = llada(tmp_path / "llada")
    lm = outpace.load(folder, ops=implementation, kv="f32")
    network = Dense("llama", vocab_size=lm.config.vocab_size)
    prompt = lm.tokenizer.encode("the cat sat on")
    options: dict[str, Any] = {"block": block, "passes": steps * block // length}
    found = lm.generate(prompt, strategy="block_diffusion", max_new_tokens=length, ignore_eos=True, **options)
    assert found.tokens == llada_sampler(network, prompt, length, steps, block)
    assert (found.lossless, found.stats.passes, found.stats.warnings) == (False, steps, [])


@pytest.mark.parametrize(("length", "steps"), [(12, 12), (12, 5), (9, 3)])
def test_dream_writes_what_its_published_sampler_writes(
    tmp_path: Path, implementation: Any, length: int, steps: int
) -> None:
    lm = outpace.load(dream(tmp_path / "dream"), ops=implementation, kv="f32")
    network = dense(lm.path)
    prompt = lm.tokenizer.encode("the cat sat on")
    found = lm.generate(prompt, strategy="block_diffusion", passes=steps, max_new_tokens=length, ignore_eos=True)
    assert found.tokens == dream_sampler(network, prompt, length, steps)


def test_batches_and_streams_of_masked_diffusion_are_the_same_texts(tmp_path: Path) -> None:
    lm = outpace.load(llada(tmp_path / "llada"), ops=MAKERS["reference"](1), kv="f32")
    prompts = ["the cat", "def f(x)", "and the dog sat"]
    options: dict[str, Any] = {"max_new_tokens": 10, "ignore_eos": True, "block": 4}
    batch = lm.generate(prompts, strategy="block_diffusion", **options)
    for prompt, result in zip(prompts, batch, strict=True):
        with lm.stream(prompt, strategy="block_diffusion", **options) as stream:
            tokens = [token for chunk in stream for token in chunk.tokens]
        assert tokens == result.tokens
    by_itself = lm.generate(prompts[0], max_new_tokens=10, ignore_eos=True)
    assert (by_itself.lossless, by_itself.verification, len(by_itself.tokens)) == (False, "none", 10)
    passes = lm.generate(prompts[0], strategy="mask_predict", passes=3, **options).stats.passes
    assert passes == 3 + 3 + 2  # of the last two tokens, the second pass masks none again


def test_what_a_network_that_fills_masks_cannot_do_is_refused(tmp_path: Path) -> None:
    lm = outpace.load(llada(tmp_path / "llada"), ops=MAKERS["reference"](1))
    for strategy in ("none", "suffix", "recompute"):
        with pytest.raises(UsageError, match=r"has no next token, so strategy .* cannot work"):
            lm.generate("the", strategy=strategy)
    with pytest.raises(UsageError, match="has no next token to verify"):
        lm.generate("the", strategy="block_diffusion", verified=True)
    with pytest.raises(UsageError, match="logprobs cannot work"):
        lm.generate("the", logprobs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_type": "sequential"}, "block_type is 'sequential', only 'llama' is supported"),
        ({"input_emb_norm": True}, "input_emb_norm is True"),
        ({"d_model": 0}, "d_model must be an integer"),
        ({"mask_token_id": 10**6}, "mask_token_id must be an integer in"),
    ],
)
def test_other_layouts_are_refused_in_the_files_own_words(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(llada(tmp_path / "llada", **changes))


@pytest.mark.parametrize("model_type", ["llada", "Dream"])
def test_a_gguf_file_must_name_its_mask(tmp_path: Path, model_type: str) -> None:
    arch = {"llada": "llada", "Dream": "dream"}[model_type]
    tensors = tensors_of(CONFIG | {"model_type": model_type, "mask_token_id": 5}, names="gguf")
    key = "tokenizer.ggml.mask_token_id"
    with pytest.raises(WeightsError, match=f"{key} is missing"):
        open_checkpoint(write_gguf(tmp_path / "a.gguf", arch, tensors=tensors))
    found = open_checkpoint(write_gguf(tmp_path / "b.gguf", arch, metadata={key: 5}, tensors=tensors))
    assert found.filling is not None
    assert (found.filling.mask_token, found.filling.sees_all) == (5, True)
