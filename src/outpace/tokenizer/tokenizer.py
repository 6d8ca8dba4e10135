"""One model's tokenizer: raw text and chats to ids, ids to text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers

from outpace.errors import TokenizerError, UsageError
from outpace.tokenizer.chat_template import ChatTemplate, check_messages, check_text, plain_contents
from outpace.tokenizer.detokenizer import Detokenizer, Spelling
from outpace.tokenizer.escape import ControlTexts, Escape, unused_characters
from outpace.tokenizer.folder import folder_parts
from outpace.tokenizer.gguf import gguf_parts
from outpace.tokenizer.library import failing_as, vocabulary, without_control_tokens
from outpace.tokenizer.parts import Parts


class Tokenizer:
    """One model's tokenizer. Immutable for its users; calls from several threads are safe."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._backend = parts.backend
        added = parts.backend.get_added_tokens_decoder()
        self._control = {i: token.content for i, token in added.items() if token.special}
        self.control_ids: frozenset[int] = frozenset(self._control)
        self._templates: dict[str, ChatTemplate] = {}

    @classmethod
    def from_folder(cls, path: str | PathLike[str]) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and the chat template of a folder; raises TokenizerError."""
        return cls(folder_parts(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from GGUF metadata (keys `tokenizer.*`); raises TokenizerError."""
        return cls(gguf_parts(metadata))

    @property
    def vocab_size(self) -> int:
        """Number of ids: one more than the highest. A model may have more rows than that."""
        return self._parts.size

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the model has one."""
        return self._parts.bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """The end tokens that the tokenizer's own files name; a model's configuration may name more."""
        return self._parts.eos_ids

    def token(self, token: int) -> str:
        """Return a token as the vocabulary spells it (byte-level BPE writes a space as "Ġ"), "" for an unused id."""
        if not 0 <= token < self.vocab_size:
            raise UsageError(f"token ids are in [0, {self.vocab_size}), got {token}")
        spelling: str | None = self._backend.id_to_token(token)
        return spelling or ""

    # -- raw text --------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Return the ids of raw text, as the model wants it: with its BOS, unless the text begins with one.

        Control tokens written in raw text are control tokens: whoever writes raw text writes the whole prompt.
        """
        ids = self.encode_text(text)
        prefix, suffix = list(self._parts.prefix), list(self._parts.suffix)
        if ids[: len(prefix)] != prefix:
            ids = prefix + ids
        return ids if suffix and ids[-len(suffix) :] == suffix else ids + suffix

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of text that continues a text: as `encode`, but nothing is added."""
        return list(_encoding(self._backend, text).ids)

    def decode(self, ids: Sequence[int], skip_special: bool = True, context: Sequence[int] = ()) -> str:
        """Return the text of `ids`, as they stand after `context`; bytes that are no UTF-8 become U+FFFD."""
        detokenizer = self.detokenizer(context, skip_special)
        return "".join([*map(detokenizer.push, ids), detokenizer.finish()])

    def detokenizer(self, context: Sequence[int] = (), skip_special: bool = True) -> Detokenizer:
        """Return what turns a new text's tokens into characters one by one; it stands after the tokens `context`.

        Without context a text begins: SentencePiece tokenizers then drop the space before its first word.
        """
        hidden = self.control_ids if skip_special else frozenset()
        return Detokenizer(self._spelling, hidden, context)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return what each token adds to the text, control tokens spelled out; half a character adds ""."""
        detokenizer = self.detokenizer(skip_special=False)
        pieces = [detokenizer.push(token) for token in ids]
        if pieces:
            pieces[-1] += detokenizer.finish()
        return pieces

    @cached_property
    def _spelling(self) -> Spelling:
        def decode(ids: Sequence[int]) -> str:
            text: str = self._backend.decode(list(ids), skip_special_tokens=False)
            return text

        return Spelling(decode, lambda token: self._backend.id_to_token(token) or "", self.vocab_size)

    # -- chats -----------------------------------------------------------------------------------

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can be called: without a template, a model only continues text."""
        return "default" in self._parts.templates

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **template_variables: Any
    ) -> list[int]:
        """Return the ids of a chat, through the model's template.

        messages: dicts with "role" and "content" (a string, or a list of {"type": "text", "text": ...}, one a line);
        whatever else they hold, and `template_variables` (`tools`, ...), is the template's business. Control tokens
        come only from the template: those in messages are plain text.
        Raises UsageError for malformed messages, TokenizerError where there is no template or it fails.
        """
        check_messages(messages)
        check_text(template_variables, "a template variable")
        messages = plain_contents(messages)
        name, source = self._choose_template(template_variables)
        escape = Escape(self._control_texts, [messages, template_variables], source)
        if name not in self._templates:
            self._templates[name] = ChatTemplate(source)
        variables = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._parts.named,
            **escape.hide(template_variables, joins=False),
        }
        text = self._templates[name].render(escape.hide(messages), variables)
        return self._encode_escaped(text, escape) if escape else self.encode_text(text)

    def _choose_template(self, variables: Mapping[str, Any]) -> tuple[str, str]:
        templates = self._parts.templates
        name = "tool_use" if variables.get("tools") is not None and "tool_use" in templates else "default"
        if name not in templates:
            have = f" (only {', '.join(map(repr, sorted(templates)))})" if templates else ""
            raise TokenizerError(
                f"this model has no default chat template{have}, so it cannot read messages: give raw text "
                "(in Python a string, on the command line `outpace generate --raw`)"
            )
        return name, templates[name]

    def _encode_escaped(self, text: str, escape: Escape) -> list[int]:
        """Encode a rendered chat in which dangerous characters are hidden.

        The control tokens that are still recognised are the template's. Each becomes a mark, then the hidden
        characters return, and the guard, which knows the mark but no control token, encodes all of it.
        """
        encoding = _encoding(self._backend, text)
        pieces, written, end = [], [], 0
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self.control_ids:
                pieces.append(escape.restore(text[end:start]))
                written.append(token)
                end = stop
        pieces.append(escape.restore(text[end:]))
        mark = next(unused_characters(pieces))
        return self._encode_marked(mark.join(pieces), mark, iter(written))

    def _encode_marked(self, text: str, mark: str, marked: Iterator[int]) -> list[int]:
        """Encode text in which each mark stands for the next of `marked`, and nothing else for a control token."""
        guard, renamed = self._guard(mark)
        encoding = _encoding(guard, text)
        ids: list[int] = []
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            said = text[start:stop]
            if said == mark:
                ids.append(next(marked))
            elif self._control.get(token) == said:  # a model of whole words found one that text spells
                ids += self._spelled(guard, said)
            else:
                ids.append(renamed.get(token, token))
        return ids

    def _spelled(self, guard: tokenizers.Tokenizer, text: str) -> list[int]:
        """Return the tokens of each character of `text` alone, as far as the model has any."""
        tokens = [token.id for char in text for token in guard.model.tokenize(char)]
        return [token for token in tokens if self._control.get(token) not in set(text)]

    @cached_property
    def _control_texts(self) -> ControlTexts:
        return ControlTexts(self._control.values())

    @cached_property
    def _guard(self) -> Callable[[str], tuple[tokenizers.Tokenizer, Mapping[int, int]]]:
        return lru_cache(maxsize=2)(lambda mark: without_control_tokens(self._backend, mark))

    # -- the vocabulary itself -------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what every id stands for; equal for equal vocabularies, whatever file they come from."""
        digest = hashlib.sha256()
        for i, token in vocabulary(self._backend, "the tokenizer").items():
            if i < self.vocab_size and i not in self._parts.unused:
                digest.update(f"{i} {len(token)} {token}".encode())
        return digest.hexdigest()

    def same_vocabulary(self, other: Tokenizer) -> bool:
        """Whether every id stands for the same token in both (unused padding at the end does not count)."""
        return self.fingerprint == other.fingerprint


def _encoding(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    if not isinstance(text, str):
        raise UsageError(f"a prompt must be text, got {text!a:.60}")
    check_text(text, "a prompt")
    with failing_as("this tokenizer cannot encode the text"):
        return backend.encode(text, add_special_tokens=False)
