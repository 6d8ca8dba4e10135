"""A tokenizer from a Hugging Face folder: tokenizer.json, tokenizer_config.json, chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from outpace.errors import TokenizerError
from outpace.tokenizer.parts import Parts

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Classes that decide by `add_bos_token` and `add_eos_token` of the config what stands around raw text;
# all others leave it to the post-processor in tokenizer.json.
LLAMA_CLASSES = {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"}


def read_folder(folder: Path) -> Parts:
    """Return the tokenizer that `folder` holds; raises TokenizerError."""
    backend = _backend(folder)
    config = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    named = {name: token for name in NAMES if (token := _content(name, config.get(name)))}
    _add_missing(backend, config, named)
    ids = {name: backend.token_to_id(token) for name, token in named.items()}
    prefix, suffix = _surroundings(backend, config, ids)
    return Parts(
        backend=backend,
        size=max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        prefix=prefix,
        suffix=suffix,
        bos_id=ids.get("bos_token"),
        eos_ids=frozenset(i for name, i in ids.items() if name == "eos_token" and i is not None),
        named=named,
        templates=_templates(folder, config),
    )


def _backend(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json (other tokenizer formats are not read): "
            "make one with transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise TokenizerError(f"{path} is not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def _content(name: str, value: Any) -> str | None:
    """Return a named token's text: it is given as a string, or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise TokenizerError(f"tokenizer_config.json: {name} is {value!r}, expected a string")
    return text


def _add_missing(backend: tokenizers.Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Add what tokenizer_config.json knows beyond tokenizer.json, as transformers does."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    entries = config.get("added_tokens_decoder", {})
    try:
        missing = {int(i): entry for i, entry in entries.items() if entry["content"] not in known}
        tokens = {i: AddedToken(**{k: v for k, v in missing[i].items() if k != "__type"}) for i in sorted(missing)}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"tokenizer_config.json: added_tokens_decoder is malformed: {error!r}") from error
    for i, added in tokens.items():
        (backend.add_special_tokens if added.special else backend.add_tokens)([added])
        if backend.token_to_id(added.content) != i:
            raise TokenizerError(
                f"tokenizer_config.json gives {added.content!r} the id {i}, "
                f"tokenizer.json {backend.token_to_id(added.content)}: the two files do not belong together"
            )
    more = [_content("additional_special_tokens", token) for token in config.get("additional_special_tokens") or ()]
    control = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for token in (*named.values(), *filter(None, more)):
        if token not in control and backend.token_to_id(token) is not None:
            backend.add_special_tokens([AddedToken(token, normalized=False)])


def _surroundings(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], ids: Mapping[str, int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the model wants before and after raw text."""
    if config.get("tokenizer_class") in LLAMA_CLASSES:
        bos = ids.get("bos_token") if config.get("add_bos_token", True) else None
        eos = ids.get("eos_token") if config.get("add_eos_token", False) else None
        return (() if bos is None else (bos,)), (() if eos is None else (eos,))
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a").ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates by name: own files go before tokenizer_config.json."""
    given = _json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(given, list):  # several, each with its name
        try:
            given = {entry["name"]: entry["template"] for entry in given}
        except (KeyError, TypeError) as error:
            raise TokenizerError(f"tokenizer_config.json: chat_template is malformed: {error!r}") from error
    templates = given if isinstance(given, dict) else {} if given is None else {"default": given}
    files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (usual := folder / "chat_template.jinja").is_file():
        files["default"] = usual
    templates |= {name: _read(path) for name, path in files.items()}
    for name, template in templates.items():
        if not isinstance(template, str):
            raise TokenizerError(f"the chat template {name!r} is a {type(template).__name__}, expected a string")
    return templates
