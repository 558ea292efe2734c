"""The API reference: every public name is in the built site, and its docstring is complete."""

from __future__ import annotations

import importlib
import inspect
import re
import types
import zlib

import pytest

import bnbx

from .documents import ROOT

SITE = ROOT / "build" / "site"
MODULES = [
    *("bnbx", "bnbx.quantize", "bnbx.codebooks", "bnbx.checkpoint", "bnbx.evaluation"),
    *("bnbx.backends", "bnbx.nn.parametrize"),
    *(f"bnbx.{name}" for name in bnbx.__all__ if isinstance(getattr(bnbx, name), types.ModuleType)),
]


def names_of(module):
    """The names that a module offers; without ``__all__`` those that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    source = inspect.getsource(module)
    names = re.findall(r"^(?:(?:def|class) )?([A-Za-z]\w*)\b.*?[:=(]", source, re.MULTILINE)
    return [name for name in names if name in vars(module)]


def public_objects():
    """Name and value of everything public; what two modules offer is there once."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name in names_of(module):
            value = getattr(module, name)
            if isinstance(value, types.ModuleType):
                continue  # a page of its own, or one more name of what is there
            found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return list(found.values())


CALLABLE = [(name, value) for name, value in public_objects() if callable(value)]


def test_every_name_is_in_the_site():
    header, entries = (SITE / "objects.inv").read_bytes().split(b"zlib.\n", 1)
    assert b"Sphinx inventory version 2" in header
    lines = zlib.decompress(entries).decode().splitlines()
    documented = {line.split(" ")[0] for line in lines if " py:" in line}
    assert len(documented) > 150
    names = [*MODULES, *(name for name, _ in public_objects())]
    assert [name for name in names if name not in documented] == []


def test_the_first_page_leads_on():
    address = re.search(r'url=([^"]+)"', (SITE / "index.html").read_text())[1]
    assert (SITE / address).is_file()


def section(docstring, title):
    """The names that a section of a docstring explains."""
    found = re.search(
        rf"^{title}\n-+\n(.*?)(?=^[^\n]+\n---+\n|\Z)", docstring, re.MULTILINE | re.DOTALL
    )
    lines = found[1].splitlines() if found else []
    return set(re.findall(r"\w+", ", ".join(line for line in lines if re.match(r"[\w*]", line))))


@pytest.mark.parametrize(("name", "value"), CALLABLE, ids=[name for name, _ in CALLABLE])
def test_arguments_are_documented(name, value):
    """They are, in the docstring or in that of another name to which it points."""
    docstring = inspect.cleandoc(vars(value).get("__doc__") or value.__doc__ or "")
    assert docstring
    arguments = set(inspect.signature(value).parameters)
    explained = section(docstring, "Parameters") | section(docstring, "Attributes")
    others = {each.rpartition(".")[2] for each, _ in CALLABLE} - {name.rpartition(".")[2]}
    points = others & set(re.findall(r"`(\w+)`", docstring))
    assert arguments <= explained or points, arguments - explained
    assert section(docstring, "Parameters") <= arguments
