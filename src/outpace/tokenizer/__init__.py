"""Text to tokens and back: the `tokenizers` library, chat templates, and text from tokens as they come.

    Tokenizer.from_folder(path)      a Hugging Face folder           folder.py
    Tokenizer.from_gguf(metadata)    the header of a GGUF file       gguf.py
    .encode / .decode                raw text
    .encode_chat                     messages, by the template       chat.py, disguise.py
    .detokenizer().push / .finish    never half a character          detokenizer.py

A *control token* is a token that steers the model and is no text (`<|im_end|>`); raw text may contain them, what
people say in a chat may not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from outpace.errors import TokenizerError, UsageError
from outpace.tokenizer.chat import ChatTemplate, check_messages
from outpace.tokenizer.detokenizer import Detokenizer, Spelling
from outpace.tokenizer.disguise import Danger, Disguise, spare
from outpace.tokenizer.folder import read_folder
from outpace.tokenizer.gguf import read_gguf
from outpace.tokenizer.parts import Parts

__all__ = ["Detokenizer", "Spelling", "Tokenizer"]


class Tokenizer:
    """One model's tokenizer. Immutable for its users; calls from several threads are safe."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._backend = parts.backend
        control = {i: token for i, token in parts.backend.get_added_tokens_decoder().items() if token.special}
        self.control_ids: frozenset[int] = frozenset(control)
        self._control_texts = [token.content for token in control.values()]
        self._templates: dict[str, ChatTemplate] = {}

    @classmethod
    def from_folder(cls, path: str | PathLike[str]) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and the chat template of a folder; raises TokenizerError."""
        return cls(read_folder(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from GGUF metadata (keys `tokenizer.*`; arrays as lists); raises TokenizerError."""
        return cls(read_gguf(metadata))

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

        messages: dicts with "role" and "content"; whatever else they hold, and `template_variables` (`tools`, ...),
        is the template's business. Control tokens come only from the template: those in messages are plain text.
        Raises UsageError for malformed messages, TokenizerError where there is no template or it fails.
        """
        check_messages(messages)
        name, source = self._choose_template(template_variables)
        disguise = Disguise(self._danger, [messages, template_variables], source)
        if name not in self._templates:
            self._templates[name] = ChatTemplate(source)
        variables = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._parts.named,
            **disguise.hide(template_variables, joins=False),
        }
        text = self._templates[name].render(disguise.hide(messages), variables)
        return self._encode_disguised(text, disguise) if disguise else self.encode_text(text)

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

    def _encode_disguised(self, text: str, disguise: Disguise) -> list[int]:
        """Encode a rendered chat in which dangerous characters are hidden.

        The control tokens that are still recognised are the template's. Each becomes a mark, then the hidden
        characters return, and the guard, which knows the mark but no control token, encodes all of it.
        """
        encoding = _encoding(self._backend, text)
        pieces, written, end = [], [], 0
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self.control_ids:
                pieces.append(disguise.restore(text[end:start]))
                written.append(token)
                end = stop
        pieces.append(disguise.restore(text[end:]))
        mark = next(spare(pieces))
        guard, mark_id = self._guard(mark)
        template_tokens = iter(written)
        return [next(template_tokens) if i == mark_id else i for i in _encoding(guard, mark.join(pieces)).ids]

    @cached_property
    def _danger(self) -> Danger:
        return Danger(self._control_texts)

    @cached_property
    def _guard(self) -> Any:
        @lru_cache(maxsize=2)
        def guard(mark: str) -> tuple[tokenizers.Tokenizer, int]:
            """Return a copy of the backend that finds no control token in text, and one ordinary token more."""
            copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
            copy.encode_special_tokens = True
            copy.add_tokens([AddedToken(mark, normalized=False)])
            return copy, copy.token_to_id(mark)

        return guard

    # -- the vocabulary itself -------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what every id stands for; equal for equal vocabularies, whatever file they come from."""
        digest = hashlib.sha256()
        for i in range(self.vocab_size):
            token = None if i in self._parts.unused else self._backend.id_to_token(i)
            if token is not None:
                digest.update(f"{i} {len(token)} {token}".encode())
        return digest.hexdigest()

    def same_vocabulary(self, other: Tokenizer) -> bool:
        """Whether every id stands for the same token in both (unused padding at the end does not count)."""
        return self.fingerprint == other.fingerprint


def _encoding(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    try:
        return backend.encode(text, add_special_tokens=False)
    except (TypeError, UnicodeEncodeError) as error:
        half = next((c for c in text if "\ud800" <= c <= "\udfff"), None) if isinstance(text, str) else None
        if half is None:
            raise UsageError(f"a prompt must be text, got {text!a:.60}") from error
        raise UsageError(
            f"a prompt must be text, and {half!a} is half a character, as bytes that are not UTF-8 leave it: decode "
            "them with their own encoding"
        ) from error
