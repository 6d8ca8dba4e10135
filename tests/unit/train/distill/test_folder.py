from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import outpace
from outpace.train.distill.folder import student_config, write_folder
from tests.distilling import KINDS, SHAPE, TOKENS, student_of, teacher_of


@pytest.mark.parametrize("model_type", list(KINDS))
def test_transformers_and_outpace_load_what_was_written(model_type: str, tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, model_type)
    student, config = student_of(teacher), student_config(teacher, SHAPE)
    write_folder(tmp_path / "student", teacher, config, student.state_dict())
    with torch.no_grad():
        expected = student.logits(student(TOKENS)[4])
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32).eval()
        assert (theirs(TOKENS).logits - expected).abs().max() < 2e-3
    lm, original = outpace.load(tmp_path / "student", threads=1), outpace.load(tmp_path / "teacher", threads=1)
    assert lm.config == student.config
    assert lm.tokenizer.same_vocabulary(original.tokenizer)
    chat = [{"role": "user", "content": "the cat"}]
    assert lm.tokenizer.encode_chat(chat) == original.tokenizer.encode_chat(chat)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "student")
    assert found.encode("the cat sat", add_special_tokens=False) == lm.tokenizer.encode_text("the cat sat")


def test_a_folder_says_no_more_than_its_teacher_with_fewer_layers(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, "qwen2", layer_types=["full_attention", "sliding_attention"] * 2)
    config = student_config(teacher, SHAPE)
    assert config["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]
    raw = json.loads((tmp_path / "teacher" / "config.json").read_text())
    changed = {name for name in raw if config[name] != raw[name]}
    assert changed == {"layer_types", "num_hidden_layers", "intermediate_size"}
    assert student_config(teacher_of(tmp_path, "qwen2"), SHAPE)["max_window_layers"] == 1
