"""Every code block of the documents: Python runs, sessions are shown as they are, commands exist.

A Python block that imports bnbx is a program of its own; another one goes on where the block before
it stopped. An output block shows what the one before it has printed. A block that cannot run here
says why in a comment before it: ``<!-- skip: next "it needs a GPU" -->``.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from unittest import SkipTest

import pytest
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

from bnbx import cli

from .documents import DOCUMENTS, ROOT, name

SESSIONS = {
    node.name
    for node in ast.walk(ast.parse((ROOT / "noxfile.py").read_text()))
    if isinstance(node, ast.FunctionDef) and node.decorator_list
}
#: Blocks of these are read by people alone.
NOT_RUN = {"text", "json", "yaml", "toml"}
SHELLS = ("bash", "sh")
LANGUAGES = NOT_RUN | {*SHELLS, "python", "output", "pycon", "{eval-rst}", "{toctree}"}
run_python = PythonEvaluator()
outputs = {}
#: What libraries say to each other: peft to transformers, and torch to itself in a compilation.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def run_block(example):
    """Run a Python block, in a fresh namespace if it is a program of its own; keep its output."""
    if re.search(r"^import bnbx", example.parsed, re.MULTILINE):
        example.namespace.clear()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        run_python(example)
    outputs[example.document] = output.getvalue()


def check_output(example):
    """Check that a block shows what the Python block before it has printed."""
    assert example.parsed.strip() == outputs[example.document].strip()


def check_commands(example):
    """Check that the sessions, programs and options that a shell block calls exist."""
    lines = example.parsed.replace("\\\n", " ").splitlines()
    for line in lines:
        for command in re.split(r"&&|\||;", line.partition(" #")[0]):
            check_command(shlex.split(command))


def check_command(words):
    if words[:2] == ["nox", "-s"]:
        sessions = words[2 : words.index("--")] if "--" in words else words[2:]
        assert set(sessions) <= SESSIONS
    elif words[:3] == ["python", "-m", "bnbx"]:
        check_options(words[3:])
    elif words[:1] == ["bnbx"]:
        check_options(words[1:])
    elif words[:1] == ["python"] and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), words[1]


def check_options(words):
    """Check that a command of bnbx's has the options that it is given."""
    command = [word for word in words[:1] if not word.startswith("-")]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as left:
        cli.main([*command, "--help"])
    assert left.value.code == 0, command
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= set(re.findall(r"--[\w-]+", shown.getvalue()))


PARSERS = (
    CodeBlockParser("python", run_block),
    CodeBlockParser("output", check_output),
    *(CodeBlockParser(shell, check_commands) for shell in SHELLS),
    DocTestParser(),
    SkipParser(),
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_blocks(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in Document.parse(str(document), *PARSERS):
        with contextlib.suppress(SkipTest):
            example.evaluate()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_nothing_is_left_out(document):
    """Not for a language that nothing above looks at, and not without a reason."""
    text = document.read_text()
    assert set(re.findall(r"^ *```(.*)$", text, re.MULTILINE)[::2]) <= LANGUAGES
    skips = re.findall(r"<!--+ skip:(.*?)-->", text)
    assert all(re.fullmatch(r' next ".{10,}" ', skip) for skip in skips)


@pytest.mark.parametrize(
    "command",
    ["nox -s none", "nox -s lint none -- -k x", "bnbx none", "bnbx info --none", "python none.py"],
)
def test_commands_that_do_not_exist_are_found(command):
    with pytest.raises(AssertionError):
        check_command(shlex.split(command))
