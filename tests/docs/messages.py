"""The messages of every error and warning that the package raises, read from its source."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
from typing import TYPE_CHECKING

from bnbx.optim.settings import SETTINGS

from .documents import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = ROOT / "src" / "bnbx"
KERNELS = ROOT / "kernels"
#: Stands for what is known only when the error is raised; documents write it as three dots.
UNKNOWN = "..."
#: Where a statement has other statements.
PARTS = ("body", "orelse", "handlers", "finalbody")


@dataclasses.dataclass(frozen=True)
class Message:
    """A message with ``...`` for its unknown parts, the hint at its end, and where it is raised."""

    text: str
    hint: str = ""
    where: str = ""

    @property
    def says_something(self) -> bool:
        """Whether it has words of its own beside those that every error has."""
        return bool(re.sub(r"expected|got|[^a-z]", "", self.text))

    def matches(self, documented: str) -> bool:
        """Whether a documented text is this message, with or without its hint.

        Either may have three dots where the other one has words: the source for what it learns
        late, the document for several messages at once.
        """
        texts = {self.text, self.text + self.hint}
        return any(_covers(t, documented) or _covers(documented, t) for t in texts)


def _covers(pattern: str, text: str) -> bool:
    parts = map(re.escape, pattern.split(UNKNOWN))
    return re.fullmatch(".+?".join(parts), text, re.DOTALL) is not None


def _texts(node: ast.expr, names: dict[str, list[ast.expr]], depth: int = 0) -> list[str]:
    """What an expression of texts can be; ``names`` has what was assigned to each name."""
    texts = [UNKNOWN]
    match node:
        case _ if depth > 4:
            pass
        case ast.Constant():
            texts = [str(node.value)]
        case ast.IfExp():
            texts = _texts(node.body, names, depth) + _texts(node.orelse, names, depth)
        case ast.JoinedStr():
            texts = _joined(node.values, names, depth)
        case ast.FormattedValue(conversion=-1, format_spec=None):
            texts = _texts(node.value, names, depth + 1)
        case ast.BinOp(op=ast.Add()):
            texts = _joined([node.left, node.right], names, depth)
        case ast.Name() if node.id in names:
            texts = [text for each in names[node.id] for text in _texts(each, names, depth + 1)]
    return texts


def _joined(parts: list[ast.expr], names: dict[str, list[ast.expr]], depth: int) -> list[str]:
    return ["".join(c) for c in itertools.product(*(_texts(p, names, depth) for p in parts))]


def _assignments(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def _functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The outermost functions, those of classes among them."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from (each for each in node.body if isinstance(each, ast.FunctionDef))
        elif isinstance(node, ast.FunctionDef):
            yield node


def _calls(
    tree: ast.Module,
) -> Iterator[tuple[ast.Call, dict[str, list[ast.expr]]]]:
    """Every call, with what the names in it may be: first by the statements around it."""
    top = _assignments(tree.body)
    for function in _functions(tree):
        of_function = _assignments(ast.walk(function))
        blocks = (vars(node).get(part) for node in ast.walk(function) for part in PARTS)
        for block in (block for block in blocks if isinstance(block, list)):
            around = _assignments(node for statement in block for node in ast.walk(statement))
            names = {**top, **of_function, **around}
            simple = (s for s in block if not any(part in vars(s) for part in PARTS))
            for node in (node for statement in simple for node in ast.walk(statement)):
                if isinstance(node, ast.Call):
                    yield node, names


def _messages_of_call(
    call: ast.Call, names: dict[str, list[ast.expr]], where: str
) -> list[Message]:
    function = ast.unparse(call.func)
    if function == "error" and len(call.args) > 2:  # not a local function that measures one
        argument, expected, got, *hint = (_texts(each, names) for each in call.args)
        hints = [f". {text}" for text in hint[0]] if hint else [""]
        combined = itertools.product(argument, expected, got, hints)
        return [Message(f"{a}: expected {e}, got {g}", h, where) for a, e, g, h in combined]
    if function == "warnings.warn" or (function.endswith("Error") and call.args):
        return [Message(text, "", where) for text in _texts(call.args[0], names)]
    return []


def _of_kernels() -> list[Message]:
    """What C++ throws: texts in quotes, and values between them."""
    found = []
    for file in set(KERNELS.rglob("*.cpp")) - set((KERNELS / "metal" / "shim").iterdir()):
        for thrown in re.findall(
            r"throw std::invalid_argument\((.*?)\);", file.read_text(), re.DOTALL
        ):
            pieces = thrown.split('"')
            ends = (UNKNOWN if pieces[0] else "", UNKNOWN if pieces[-1] else "")
            text = UNKNOWN.join(pieces[1::2]).join(ends)
            found.append(Message(text, "", file.name))
    return found


def messages() -> list[Message]:
    """Every message of the package."""
    found = [
        Message(f"{UNKNOWN}{key}: expected {setting.expected}, got {UNKNOWN}", "", "SETTINGS")
        for key, setting in SETTINGS.items()
    ]
    for file in sorted(PACKAGE.rglob("*.py")):
        for call, names in _calls(ast.parse(file.read_text())):
            found += _messages_of_call(call, names, f"{file.relative_to(ROOT)}:{call.lineno}")
    return found + _of_kernels()
