"""What the `tokenizers` library needs to be used safely on files that nobody vouches for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import tokenizers

from outpace.errors import TokenizerError

MAX_VOCABULARY = 1 << 24  # ids; a model has no more rows


@contextmanager
def failing_as(problem: str, failure: Callable[[str], Exception] = TokenizerError) -> Iterator[None]:
    """Turn whatever the library raises into an error of ours: a bare Exception, or a panic, which is not even one."""
    try:
        yield
    except TokenizerError:
        raise
    except Exception as error:
        raise failure(f"{problem}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise failure(f"{problem}: {error}") from error


def vocabulary(backend: tokenizers.Tokenizer, where: str) -> dict[int, str]:
    """Return id -> token of all ids that stand for something, ascending.

    Raises TokenizerError for an id that stands for two tokens, and for one that no model can have a row for. Ids may
    leave gaps.
    """
    tokens: dict[int, str] = {}
    for token, i in sorted(backend.get_vocab(with_added_tokens=True).items(), key=lambda item: (item[1], item[0])):
        if i in tokens:
            raise TokenizerError(f"{where}: the id {i} is given to {tokens[i]!r} and to {token!r}: it must be one's")
        tokens[i] = token
    highest = next(reversed(tokens), 0)
    if highest >= MAX_VOCABULARY:
        raise TokenizerError(f"{where}: {tokens[highest]!r} has the id {highest}, must be below {MAX_VOCABULARY}")
    return tokens


def without_control_tokens(backend: tokenizers.Tokenizer, mark: str) -> tuple[tokenizers.Tokenizer, Mapping[int, int]]:
    """Return a tokenizer that finds no control token in text, but `mark`, a character, as a token of its own.

    It shares the model with `backend`: a copy would go through JSON, which takes as much memory as the highest id,
    and complains on stdout about gaps. The mapping tells ids that are not those of `backend`.
    """
    other = tokenizers.Tokenizer(backend.model)
    if backend.normalizer is not None:
        other.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        other.pre_tokenizer = backend.pre_tokenizer
    added = [(i, token) for i, token in sorted(backend.get_added_tokens_decoder().items()) if not token.special]
    other.add_tokens([*(token for _, token in added), tokenizers.AddedToken(mark, normalized=False)])
    renamed = {other.token_to_id(token.content): i for i, token in added}
    return other, {theirs: i for theirs, i in renamed.items() if theirs != i}
