"""Fetch models from the hub by their id: Hugging Face folders, and GGUF files chosen by quantisation or name.

The hub's client stores what it fetches, resumes what was cut off, and serves it from its cache without a connection.
GGUF files are compared with the hash that the hub states for them, once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from outpace.errors import DownloadError, UsageError
from outpace.weights.gguf import part_names
from outpace.weights.pull import Progress

FOLDER_FILES = ["config.json", "generation_config.json", "quantize_config.json", "quant_config.json"]
FOLDER_FILES += ["*.safetensors", "model.safetensors.index.json"]
FOLDER_FILES += ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template*"]

PREFERRED = (  # without a wish: small and close to the original first, then what else there is by size
    *("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "IQ4_XS", "IQ4_NL", "Q6_K", "Q8_0"),
    *("MXFP4", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "BF16", "F16", "F32"),
)
_QUANTISATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_[A-Z\d]+)*|B?F16|FP16|F32|MXFP4(?:_MOE)?))(?=$|[-./])", re.IGNORECASE
)
_COMPANIONS = ("mmproj", "imatrix")  # files of other uses that lie beside models
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # errors of the disk, not of the connection
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Variant:
    """A model in a repository of GGUF files: the names of its parts, and how it is quantised, as its name says."""

    names: tuple[str, ...]
    quantisation: str  # in capitals; "" where the name does not tell


@dataclass(frozen=True, slots=True)
class _Stated:
    """What the hub says of a file."""

    num_bytes: int | None
    sha256: str | None


def fetch_folder(model_id: str, files: Sequence[str] = FOLDER_FILES) -> Path:
    """Return the folder of a repository's files that match the patterns; raises DownloadError."""
    client = _client(model_id)
    with _told(model_id):
        return Path(client.snapshot_download(model_id, allow_patterns=list(files)))


def fetch_gguf(model_id: str, wish: str | None, checked: Path, progress: Progress | None = None) -> Path:
    """Return the GGUF file (its first part) of a repository that a wish names: a quantisation, or the file.

    checked: the folder of notes on files whose hash was compared. Raises UsageError for a wish that names no file or
    several, DownloadError where fetching fails or the hash differs.
    """
    client = _client(model_id)
    stated, revision = _list_files(client, model_id)
    variant = choose(model_id, list(stated), wish)
    total = sum(stated[name].num_bytes or 0 for name in variant.names)
    paths, done = [], 0
    for name in variant.names:
        if progress is not None and total:
            progress(done, total)
        with _told(model_id):
            path = Path(client.hf_hub_download(model_id, name, **({} if revision is None else {"revision": revision})))
        _compare(path, f"{model_id}: {name}", stated[name].sha256, checked)
        paths.append(path)
        done += stated[name].num_bytes or 0
    if progress is not None and total:
        progress(total, total)
    return paths[0]


def choose(model_id: str, names: Sequence[str], wish: str | None) -> Variant:
    """Return the one that is wished for among a repository's GGUF files; without a wish, by PREFERRED."""
    found = variants(names)
    if not found:
        more = "" if wish is not None else " and no *.safetensors"
        raise UsageError(f"{model_id}: holds no GGUF files{more}: look at its page on the hub")
    offered = ", ".join(variant.quantisation or variant.names[0] for variant in found)
    if wish is None:
        ranks = {name: rank for rank, name in enumerate(PREFERRED)}
        known = [variant for variant in found if variant.quantisation in ranks]
        if not known and len(found) > 1:
            raise UsageError(f"{model_id}: holds {len(found)} GGUF models: name one, {model_id}:NAME, of {offered}")
        return min(known, key=lambda variant: ranks[variant.quantisation]) if known else found[0]
    fitting = [variant for variant in found if wish.upper() == variant.quantisation]
    fitting = fitting or [v for v in found if wish in v.names or wish in [name.rpartition("/")[2] for name in v.names]]
    if len(fitting) != 1:
        what = f"{len(fitting)} files fit {wish!r}: give the file's name" if fitting else f"no file fits {wish!r}"
        raise UsageError(f"{model_id}: {what}; there are {offered}")
    return fitting[0]


def variants(names: Sequence[str]) -> list[Variant]:
    """Return the models among a repository's files, parts of a split one together."""
    models = sorted(
        name for name in names if name.endswith(".gguf") and not name.rpartition("/")[2].lower().startswith(_COMPANIONS)
    )
    found: dict[tuple[str, ...], None] = {}
    for name in models:
        folder, slash, file = name.rpartition("/")
        parts = part_names(file)
        found[tuple(folder + slash + part for part in parts) if parts else (name,)] = None
    return [Variant(names, _quantisation(names[0])) for names in found]


def _quantisation(name: str) -> str:
    matches = _QUANTISATION.findall(name.removesuffix(".gguf"))
    return str(matches[-1]).upper().replace("FP16", "F16") if matches else ""


def _client(model_id: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError(
            f"{model_id}: no such path, and hub models need an extra: pip install 'outpace[hub]', or give a path"
        ) from None
    return huggingface_hub


def _list_files(client: ModuleType, model_id: str) -> tuple[dict[str, _Stated], str | None]:
    """Return a repository's files and its revision; without a connection, the files that are in the client's cache."""
    try:
        info = client.HfApi().model_info(model_id, files_metadata=True)
    except (OSError, ValueError) as error:
        try:
            folder = Path(client.snapshot_download(model_id, allow_patterns=["*.gguf"], local_files_only=True))
        except (OSError, ValueError):
            with _told(model_id):
                raise error from None
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf"))
        return {name: _Stated(None, None) for name in names}, None
    return {file.rfilename: _stated(file) for file in info.siblings or ()}, info.sha


def _stated(file: Any) -> _Stated:
    return _Stated(file.size, None if file.lfs is None else file.lfs.sha256)


def _compare(path: Path, what: str, sha256: str | None, notes: Path) -> None:
    """Compare a file with the hash that the hub states, unless a note says that it was; a wrong one is taken away."""
    if sha256 is None:
        return
    file = path.resolve()
    found = file.stat()
    now = {"path": str(file), "bytes": found.st_size, "time": found.st_mtime_ns}
    note = notes / f"{sha256}.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(note.read_text(encoding="utf-8")) == now:
            return
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_CHUNK):
            digest.update(piece)
    if digest.hexdigest() != sha256:
        file.unlink()
        raise DownloadError(f"{what}: what was fetched has another SHA-256 than the hub states: fetch it again")
    with contextlib.suppress(OSError):  # a note that cannot be kept costs a comparison the next time
        notes.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(now), encoding="utf-8")
        os.replace(part, note)


@contextlib.contextmanager
def _told(model_id: str) -> Iterator[None]:
    """Tell everything that the hub's client raises (no connection, not found, gated) as a DownloadError."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            raise DownloadError(
                f"{model_id}: cannot be stored in {error.filename or 'the folder of the hub client'} "
                f"({error.strerror}): make room, or name another folder in HF_HOME"
            ) from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(
            f"{model_id}: no such path, and fetching it from the hub failed ({reason[0]}): look at the name and "
            f"the connection; for gated models log in first (hf auth login)"
        ) from None
