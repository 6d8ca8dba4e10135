"""What a measurement must say about where it comes from: code, machine, versions, model."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from outpace.api import LanguageModel

_PACKAGES = ("numpy", "tokenizers", "safetensors", "torch", "transformers")


def provenance(lm: LanguageModel) -> dict[str, Any]:
    """Return plain JSON values: commit, machine, ISA, threads, versions, model and its SHA-256, and the time."""
    from outpace import __version__

    ops = lm.runner.ops
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "outpace": __version__,
        "commit": commit(Path(__file__).parents[1]),
        "machine": machine(),
        "ops": ops.name,
        "isa": ops.isa,
        "threads": ops.threads,
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
        "model": {"name": lm.path.name, "sha256": model_digest(lm.path), "bytes": lm.num_bytes},
    }


def commit(folder: Path) -> str | None:
    """Return the commit of the checkout that holds `folder`, "+changes" if files differ from it; None outside one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    try:
        if git("rev-parse", "--is-inside-work-tree") != "true" or not git("ls-files", "."):
            return None  # a checkout of something else, which happens to hold the installed package
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """Return the processor's name, its number of CPUs (and of those this process may use), memory and system."""
    return {
        "cpu": _cpu_name() or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those of the packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def model_digest(path: Path) -> str:
    """Return the SHA-256 of a model file; of a folder, that of the names and contents of its weights and JSON files."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json"))
    for file in files:
        if path.is_dir():
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
