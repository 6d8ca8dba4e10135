"""A tokenizer from a Hugging Face folder: tokenizer.json, tokenizer_config.json, chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from outpace.errors import TokenizerError
from outpace.tokenizer.library import MAX_VOCABULARY, failing_as, vocabulary
from outpace.tokenizer.parts import Parts
from outpace.weights.files import check_density, present, read_bytes, read_object, read_text
from outpace.weights.values import Values, shown

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Classes that decide by `add_bos_token` and `add_eos_token` of the config what stands around raw text;
# all others leave it to the post-processor in tokenizer.json.
LLAMA_CLASSES = {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"}

_LIMIT = 1 << 27  # bytes of tokenizer.json: several times the largest known
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SAMPLE = "The fox,  12 <|naïve|>\n日本"
_SPACE = re.compile(r"[ \t\n\r]*")


def folder_parts(folder: Path) -> Parts:
    """Return the tokenizer that `folder` holds; raises TokenizerError."""
    backend = _backend(folder)
    config = _values(folder / "tokenizer_config.json")
    named = _named(config, _values(folder / "special_tokens_map.json"))
    _add_missing(backend, config, named)
    tokens = vocabulary(backend, str(folder / "tokenizer.json"))
    ids = {name: backend.token_to_id(token) for name, token in named.items()}
    prefix, suffix = _surroundings(backend, config, ids)
    if foreign := [i for i in (*prefix, *suffix) if i not in tokens]:
        raise TokenizerError(
            f"{folder / 'tokenizer.json'}: post_processor adds the id {foreign[0]}, which no token has"
        )
    return Parts(
        backend=backend,
        size=max(tokens, default=-1) + 1,
        prefix=prefix,
        suffix=suffix,
        bos_id=ids.get("bos_token"),
        eos_ids=frozenset(i for name, i in ids.items() if name == "eos_token" and i is not None),
        named=named,
        templates=_templates(folder, config),
    )


# -- tokenizer.json --------------------------------------------------------------------------------


def _backend(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not present(path):
        raise TokenizerError(
            f"{folder} has no tokenizer.json (other tokenizer formats are not read): "
            "make one with transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    content = read_bytes(path, _LIMIT, TokenizerError)
    check_density(content, str(path), TokenizerError)
    with failing_as(f"{path} is not a tokenizer"):
        backend = tokenizers.Tokenizer.from_buffer(content)
        backend.no_truncation()
        backend.no_padding()
        backend.decode(backend.encode(_SAMPLE).ids)  # some parts that can be read cannot work
    for token, i in _added_tokens(content.decode()):
        # The library numbers these tokens on its own, from the size of the vocabulary on, whatever the file says.
        if backend.token_to_id(token) != i:
            raise TokenizerError(
                f"{path}: added_tokens gives {token!r} the id {i}, where {backend.token_to_id(token)} would follow: "
                "ids of added tokens must be those of the vocabulary, or come after it without a gap"
            )
    return backend


def _added_tokens(text: str) -> Iterator[tuple[str, int]]:
    """Yield the text and the id of each entry of `added_tokens`, read from valid JSON as far as needed."""
    decoder = json.JSONDecoder()
    place = _after(text, 0) + 1  # the brace of the outer object
    while text[place := _after(text, place)] != "}":
        key, place = decoder.raw_decode(text, place)
        value, place = decoder.raw_decode(text, _after(text, _after(text, place) + 1))
        if key == "added_tokens":
            yield from ((entry["content"], entry["id"]) for entry in value or ())
            return
        place = _after(text, place)
        place += text[place] == ","


def _after(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


# -- tokenizer_config.json -------------------------------------------------------------------------


def _values(path: Path) -> Values:
    """Return the values of a JSON object, none where there is no such file."""
    raw = read_object(path, TokenizerError) if present(path) else {}
    return Values(raw, str(path), failure=TokenizerError)


def _named(config: Values, tokens_map: Values) -> dict[str, str]:
    """Return the tokens that have a name for templates; tokenizer_config.json goes first, null included."""
    found = {name: (config if name in config.raw else tokens_map).token(name) for name in NAMES}
    return {name: token for name, token in found.items() if token}


def _add_missing(backend: tokenizers.Tokenizer, config: Values, named: Mapping[str, str]) -> None:
    """Add what tokenizer_config.json knows beyond tokenizer.json, as transformers does."""
    entries = config.object("added_tokens_decoder")
    stated = {_id(entries, key): _added_token(entries.object(key)) for key in entries.raw}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([stated[i] for i in sorted(stated) if stated[i].content not in known])
    for i, token in stated.items():
        if backend.token_to_id(token.content) != i:
            raise TokenizerError(
                f"{config.where} gives {token.content!r} the id {i}, "
                f"tokenizer.json {backend.token_to_id(token.content)}: the two files do not belong together"
            )
    control = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    wanted = dict.fromkeys((*named.values(), *filter(None, config.tokens("additional_special_tokens"))))
    backend.add_special_tokens(
        [
            AddedToken(token, normalized=False)
            for token in wanted
            if token not in control and backend.token_to_id(token) is not None
        ]
    )


def _id(entries: Values, key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < MAX_VOCABULARY):
        raise entries.error(shown(key), f"must be an id in [0, {MAX_VOCABULARY})")
    return int(key)


def _added_token(entry: Values) -> AddedToken:
    content = entry.text("content")
    if not content:
        raise entry.error("content", "is missing or empty")
    return AddedToken(content, **{name: entry.flag(name) for name in _FLAGS if name in entry.raw})


def _surroundings(
    backend: tokenizers.Tokenizer, config: Values, ids: Mapping[str, int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the model wants before and after raw text."""
    if config.text("tokenizer_class") in LLAMA_CLASSES:
        bos = ids.get("bos_token") if config.flag("add_bos_token", absent=True, null=False) else None
        eos = ids.get("eos_token") if config.flag("add_eos_token", absent=False, null=False) else None
        return (() if bos is None else (bos,)), (() if eos is None else (eos,))
    with failing_as(f"{config.where}: tokenizer.json cannot encode a text"):
        bare = backend.encode("a", add_special_tokens=False).ids
        full = backend.encode("a").ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()


# -- chat templates --------------------------------------------------------------------------------


def _templates(folder: Path, config: Values) -> dict[str, str]:
    """Return the chat templates by name: own files go before tokenizer_config.json."""
    own = _values(folder / "chat_template.json")
    source = own if "chat_template" in own.raw else config
    templates = dict(_stated_templates(source))
    more = folder / "additional_chat_templates"
    files = {path.stem: path for path in sorted(more.glob("*.jinja"))}
    if present(usual := folder / "chat_template.jinja"):
        files["default"] = usual
    return templates | {name: read_text(path, failure=TokenizerError) for name, path in files.items()}


def _stated_templates(source: Values) -> Iterator[tuple[str, str]]:
    given: Any = source.raw.get("chat_template")
    if isinstance(given, list):  # several, each with its name
        for entry in given:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise source.error("chat_template", f"has an entry without a name: {shown(entry)}")
        given = {entry["name"]: entry.get("template") for entry in given}
    for name, template in (given if isinstance(given, dict) else {} if given is None else {"default": given}).items():
        if not isinstance(template, str):
            raise source.error("chat_template", f"{name!r} must be a string, is {shown(template)}")
        yield name, template
