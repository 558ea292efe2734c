"""docs/troubleshooting.md has every message of the package, and none that the package has not."""

from __future__ import annotations

import re

import pytest

from .documents import ROOT
from .messages import Message, messages

DOCUMENT = ROOT / "docs" / "troubleshooting.md"
DOCUMENTED = re.findall(r"^\| `([^`]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
#: What bnbx passes on: the words of CMake, and what torch puts a message behind.
ELSEWHERE = {
    "COMPUTE_BACKEND: expected one of ..., got '...'.": "CMakeLists.txt",
    'While loading "...weight": ...': "src/bnbx/nn/module.py",
}
MESSAGES = [message for message in messages() if message.says_something]


def test_the_messages_are_found():
    texts = {message.text for message in MESSAGES}
    assert len(texts) > 150
    assert "....weight is not quantized yet: call .to(device) on the ...." in texts
    assert "typename: expected 'nf4', 'fp4', 'int4' or 'af4', got ..." in texts


@pytest.mark.parametrize("documented", DOCUMENTED)
def test_no_message_is_made_up(documented):
    assert any(message.matches(documented) for message in MESSAGES) or documented in ELSEWHERE


@pytest.mark.parametrize(("documented", "files"), ELSEWHERE.items(), ids=ELSEWHERE.values())
def test_messages_from_elsewhere(documented, files):
    words = max(documented.split("..."), key=len)
    assert any(words in file.read_text() for file in ROOT.glob(files))


def test_no_message_is_missing():
    missing = [m for m in MESSAGES if not any(m.matches(each) for each in DOCUMENTED)]
    assert not missing, "\n".join(f"{m.where}: {m.text}" for m in missing)


def test_matching():
    message = Message("p[...]: expected a matrix, got ...", ". Reshape it.")
    assert message.matches("p[...]: expected a matrix, got ...")
    assert message.matches("p[...]: expected a matrix, got .... Reshape it.")
    assert message.matches("...: expected a matrix, got ...")
    assert not message.matches("...: expected a vector, got ...")
    assert not message.matches("...: expected ..., got a vector")
