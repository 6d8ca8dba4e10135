from __future__ import annotations

from outpace.train.text.duplicates import NGRAM, TEMPLATE, Seen, overlapping, words_of

TEXT = "Write a short story about an old lighthouse keeper who finds a letter in a bottle on a grey winter morning"


def test_what_differs_in_case_spacing_and_punctuation_alone_is_the_same() -> None:
    seen = Seen()
    assert seen.add(TEXT) is None
    assert seen.add(TEXT.upper().replace(" ", "\n ") + "!!") == "exact"


def test_a_text_with_a_word_changed_is_near_and_one_with_another_subject_is_not() -> None:
    seen = Seen()
    assert seen.add(TEXT) is None
    assert seen.add(TEXT.replace("grey", "cold")) == "near"
    assert seen.add("Explain how a lighthouse works, and why its keeper writes a letter every winter morning") is None
    assert seen.add(TEXT) == "exact"


def test_short_texts_are_near_only_if_they_are_the_same() -> None:
    seen = Seen()
    assert seen.add("What is 3 + 4?") is None
    assert seen.add("What is the capital of France?") is None
    assert seen.add("What is the capital of Italy?") is None
    assert seen.add("what is 3 4") == "exact"


def test_near_duplicates_are_found_among_many() -> None:
    """At their similarity of 0.87, 1 - 0.87^3 to the power of 32 are missed: one in 10^15."""
    seen = Seen()
    originals = [" ".join(f"w{i}x{j}" for j in range(60)) for i in range(100)]
    assert [seen.add(text) for text in originals] == [None] * 100
    changed = [text.replace(f"w{i}x30", "other").replace(f"w{i}x59", "more") for i, text in enumerate(originals)]
    assert [seen.add(text) for text in changed] == ["near"] * 100


def test_characters_without_spaces_between_them_are_words() -> None:
    assert words_of("Tokyo 日本語, ok") == ["tokyo", "日", "本", "語", "ok"]


def test_a_text_that_shares_words_in_a_row_with_a_held_out_one_is_named() -> None:
    words = TEXT.split()
    inside = f"Please do this: {' '.join(words[2 : 2 + NGRAM])} and then stop"
    less = f"Please do this: {' '.join(words[2 : 1 + NGRAM])} and then stop"
    assert overlapping([inside, less, "Name three rivers"], [TEXT]) == [True, False, False]


def test_a_short_held_out_text_counts_as_a_whole() -> None:
    assert overlapping(["Name three rivers!", "Name three rivers in France"], ["name three rivers"]) == [True, False]


def test_the_words_of_a_template_do_not_count() -> None:
    template = "Summarise the following passage in one sentence and keep the names of all people in it please:"
    texts = [f"{template} passage number {i} is about {chr(97 + i)} alone" for i in range(TEMPLATE)]
    held_out = f"{template} and this is the one that is held out"
    assert overlapping(texts, [held_out]) == [False] * TEMPLATE
    assert overlapping(texts[:3], [held_out]) == [True] * 3
