from __future__ import annotations

from outpace.api import LanguageModel
from outpace.measure.bench.adversarial import adversarial
from outpace.measure.bench.alternate import Design, lengthened, measure


def test_prompts_are_tokens_at_random_that_the_same_seed_draws_again(lm: LanguageModel) -> None:
    prompts = adversarial(lm.tokenizer, 2)
    assert [prompt.category for prompt in prompts] == ["random tokens"] * 2 + ["no repetition"] * 2
    encoded = lengthened(lm, prompts, 0)
    assert encoded == [list(prompt.tokens) for prompt in adversarial(lm.tokenizer, 2)]
    assert len({tuple(tokens) for tokens in encoded}) == 4
    assert all(0 <= token < lm.tokenizer.vocab_size for tokens in encoded for token in tokens)
    assert not lm.tokenizer.control_ids & {token for tokens in encoded for token in tokens}
    assert lengthened(lm, prompts, 500) == encoded, "nothing is put in front of them"


def test_a_text_without_repetition_has_none(lm: LanguageModel) -> None:
    prompt = adversarial(lm.tokenizer, 1)[1]
    options = {"ignore_eos": True, "max_new_tokens": 24, "strategy": "none"}
    tokens = lm.generate([list(prompt.tokens)], presence_penalty=prompt.presence_penalty, **options)[0].tokens
    assert len(set(tokens)) == len(tokens) == 24


def test_they_are_measured_like_others(lm: LanguageModel) -> None:
    design = Design(("auto",), samplings=("greedy",), num_tokens=12, repeats=1)
    samples = list(measure(lm, adversarial(lm.tokenizer, 1), design))
    assert [sample.category for sample in samples] == ["random tokens"] * 2 + ["no repetition"] * 2
    assert all(sample.equal for sample in samples)
