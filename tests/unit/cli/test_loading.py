from __future__ import annotations

import pytest

from outpace.cli.loading import fetching, open_model
from outpace.weights.catalog import DEFAULT


def test_only_a_known_model_that_is_not_here_shows_a_download(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path_factory.mktemp("cache")))
    with fetching("/some/path.gguf") as progress:
        assert progress is None
    assert capsys.readouterr().err == ""
    with fetching(DEFAULT) as progress:
        assert progress is not None
        progress(25_000_000, 100_000_000)
    assert capsys.readouterr().err.startswith("25 % done in 0:00, about 0:00 left; fetching smollm2-135m: 25 of 100 MB")


def test_what_the_options_say_reaches_the_model(folder: str) -> None:
    lm = open_model(folder, ops="reference", threads=1, kv="int8", context=50)
    assert lm.runner.context == 50
    assert lm.runner.cache.spec.format == "int8"
