from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
import transformers

import outpace
from outpace.errors import UsageError
from outpace.models import sizes
from outpace.models.checkpoint import open_checkpoint
from outpace.train.distill.folder import Shape, student_config, write_folder
from outpace.train.distill.gguf_file import write_student
from outpace.train.networks.transformer import Dequantised, TransformerNetwork
from tests.distilling import SHAPE, TOKENS, student_of, teacher_of


@pytest.mark.parametrize("format", ["F16", "Q8_0"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "phi3"])
def test_a_gguf_file_holds_the_same_network(model_type: str, format: str, tmp_path: Path) -> None:
    """Queries and keys of Llama's files lie in another order; a vocabulary and a template are in there too."""
    teacher = teacher_of(tmp_path, model_type, head_dim=16)
    student, config = student_of(teacher), student_config(teacher, SHAPE)
    path = tmp_path / "student.gguf"
    write_student(path, teacher, SHAPE, config, student.state_dict(), "tiny", format)
    again = open_checkpoint(path)
    assert again.config["model_type"] == model_type
    network = TransformerNetwork.of(sizes(again.config), Dequantised(again.tensors))
    with torch.no_grad():
        found, expected = network(TOKENS)[4], student(TOKENS)[4]
        near = torch.cosine_similarity(found, expected, dim=-1).mean()
    assert replace(network.config, eps=student.config.eps) == student.config  # there it is a float32
    assert near > (0.9999 if format == "F16" else 0.99)
    lm, original = outpace.load(path, threads=1), outpace.load(tmp_path / "teacher", threads=1)
    assert lm.tokenizer.same_vocabulary(original.tokenizer)
    chat = [{"role": "user", "content": "the cat"}]
    assert lm.tokenizer.encode_chat(chat) == original.tokenizer.encode_chat(chat)
    assert lm.loaded.eos_ids == original.loaded.eos_ids
    fields = gguf.GGUFReader(path).fields
    assert fields["general.architecture"].contents() == teacher_architecture(model_type)


def teacher_architecture(model_type: str) -> str:
    return "llama" if model_type == "mistral" else model_type


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_student_of_a_gguf_file_is_a_folder_and_a_file_too(model_type: str, tmp_path: Path) -> None:
    first = teacher_of(tmp_path, model_type, head_dim=16)
    whole = TransformerNetwork.of(sizes(first.config), Dequantised(first.tensors))
    path, everything = tmp_path / "teacher.gguf", Shape((0, 1, 2, 3), 96)
    write_student(path, first, everything, student_config(first, everything), whole.state_dict(), "tiny", "F32")
    teacher = open_checkpoint(path)
    student, config = student_of(teacher), student_config(teacher, SHAPE)
    write_folder(tmp_path / "student", teacher, config, student.state_dict())
    write_student(tmp_path / "student.gguf", teacher, SHAPE, config, student.state_dict(), "tiny", "F16")
    original = outpace.load(path, threads=1)
    for place in ("student", "student.gguf"):
        lm = outpace.load(tmp_path / place, threads=1)
        assert lm.config == student.config
        assert lm.loaded.eos_ids == original.loaded.eos_ids
        assert lm.tokenizer.same_vocabulary(original.tokenizer)
        chat = [{"role": "user", "content": "the cat"}]
        assert lm.tokenizer.encode_chat(chat) == original.tokenizer.encode_chat(chat)
        assert lm.tokenizer.encode("the cat") == original.tokenizer.encode("the cat")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32).eval()
    with torch.no_grad():
        assert (theirs(TOKENS).logits - student.logits(student(TOKENS)[4])).abs().max() < 2e-3
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "the cat"}], tokenize=True) is not None


def test_what_a_file_cannot_say_is_refused(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    teacher = teacher_of(tmp_path, rope_scaling=scaling)
    config, student = student_config(teacher, SHAPE), student_of(teacher)
    with pytest.raises(UsageError, match=r"its rope is scaled \(linear\)"):
        write_student(tmp_path / "a.gguf", teacher, SHAPE, config, student.state_dict(), "tiny", "F16")
    teacher = teacher_of(tmp_path)
    tokenizer = json.loads((tmp_path / "teacher" / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    (tmp_path / "teacher" / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = student_config(teacher, SHAPE)
    with pytest.raises(UsageError, match="no name in GGUF files is known for how its tokenizer cuts text"):
        write_student(tmp_path / "a.gguf", teacher, SHAPE, config, student.state_dict(), "tiny", "F16")
