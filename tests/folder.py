"""A tiny random model as a Hugging Face folder, with tokenizer and chat template: what a user hands to `load`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.tiny import tiny_config, tiny_values

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "the cat sat on the mat and the dog sat on the log",
    "Grüße aus Köln: 1, 2, 3 – 日本語 👩‍🚀",
    "def f(x):\n    return x",
]


def make_folder(
    path: Path, model_type: str = "llama", *, vocab: int = 320, template: str = TEMPLATE, **overrides: Any
) -> Path:
    """Write the model into `path` and return it; <|im_end|> (id 1) ends a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    config = tiny_config(model_type, vocab_size=backend.get_vocab_size(), eos_token_id=1, **overrides)
    path.mkdir(parents=True, exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<|im_end|>"}))
    save_file(tiny_values(config), path / "model.safetensors")
    return path
