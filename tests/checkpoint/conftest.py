"""One model, saved once."""

from __future__ import annotations

import pytest

from .models import llama, save


@pytest.fixture(scope="session")
def llama_path(tmp_path_factory):
    """Return the directory of a small Llama in bfloat16, in several files."""
    path = tmp_path_factory.mktemp("models") / "llama"
    save(llama(), path, max_shard_size="60KB")
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    (path / "LICENSE").write_text("free")
    return path
