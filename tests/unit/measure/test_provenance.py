from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import outpace
from outpace.measure.provenance import commit, model_digest, provenance, versions
from tests.folder import make_folder


def test_it_names_code_machine_and_model(tmp_path: Path) -> None:
    lm = outpace.load(make_folder(tmp_path / "tiny"), ops="reference", threads=1)
    found = provenance(lm)
    assert found["model"] == {"name": "tiny", "sha256": model_digest(tmp_path / "tiny"), "bytes": lm.num_bytes}
    assert (found["ops"], found["threads"], found["outpace"]) == ("reference", 1, outpace.__version__)
    assert found["machine"]["cpus_allowed"] >= 1
    assert "numpy" in found["versions"]


def test_a_models_digest_is_its_files_and_a_folders_changes_with_any_of_its_files(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    assert model_digest(file) == hashlib.sha256(b"weights").hexdigest()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    before = model_digest(folder)
    (folder / "config.json").write_text("{}")
    assert model_digest(folder) != before


def test_the_commit_is_that_of_the_checkout_that_holds_the_folder(tmp_path: Path) -> None:
    assert commit(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    assert commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == git("rev-parse", "HEAD") + "+changes"


def test_versions_are_of_what_is_installed() -> None:
    assert list(versions(("numpy", "no-such-package"))) == ["numpy"]
