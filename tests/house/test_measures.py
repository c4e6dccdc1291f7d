"""How large things may be: a folder, a file, a class, a function. What outgrows its measure is split, not excused.

The measures hold for everything that is written in Python here: the package, its tests, the experiments, the tools.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("gwtf_p2p", "tests", "experiments", "examples", "docs")

MOST_MODULES = 15
"""In a folder, beside `__init__.py`."""

MOST_LINES = 400
"""Of a file."""

MOST_METHODS = 20
"""Of a class, counted where it is written: properties and private ones too, inherited ones not."""

MOST_FUNCTION_LINES = 55
"""Of a function with its docstring and its inner functions. About 40 is meant; the longest are tables and tests that tell a
whole story."""

MOST_ARGUMENTS = 6
"""Of a function, `self` and keyword-only ones aside: further ones have names at the call, or a dataclass. What a test takes is
handed to it by name."""


def sources() -> list[Path]:
    """Every Python file of the project."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


SOURCES = sources()


def methods(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every class with the number of its methods. Setters and overloads count as one with what they belong to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name, len({each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)})


def functions(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Every function with its lines (without decorators) and its positional arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [each.arg for each in (*node.args.posonlyargs, *node.args.args) if each.arg not in ("self", "cls")]
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1, len(arguments)


def test_what_is_measured_is_seen() -> None:
    """The rules below would pass over nothing, were the measuring wrong."""
    code = """
class Large:
    first = lambda self: 1

    def second(self, a, b, *, c): ...

    async def third(cls):
        def inner(d): ...

    @property
    def fourth(self): ...

    @fourth.setter
    def fourth(self, value): ...
"""
    tree = ast.parse(code)
    assert list(methods(tree)) == [("Large", 3)]
    found = {name: (lines, arguments) for name, lines, arguments in functions(tree) if name != "fourth"}
    assert found == {"second": (1, 2), "third": (2, 0), "inner": (1, 1)}
    assert len(SOURCES) > 300, "the folders are where they were"


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_small(folder: str) -> None:
    for place in {path.parent for path in SOURCES if path.is_relative_to(ROOT / folder)}:
        count = sum(path.name != "__init__.py" for path in place.glob("*.py"))
        assert count <= MOST_MODULES, f"{place.relative_to(ROOT)}: {count} modules"


def test_files_are_short() -> None:
    found = [(path.relative_to(ROOT), len(path.read_text().splitlines())) for path in SOURCES]
    assert [f"{path}: {lines} lines" for path, lines in found if lines > MOST_LINES] == []


def test_classes_have_few_methods() -> None:
    found = [(path.relative_to(ROOT), *each) for path in SOURCES for each in methods(ast.parse(path.read_text()))]
    assert [f"{path}: {name}: {count} methods" for path, name, count in found if count > MOST_METHODS] == []


def test_functions_are_short() -> None:
    found = [(path.relative_to(ROOT), *each) for path in SOURCES for each in functions(ast.parse(path.read_text()))]
    assert [f"{path}: {name}: {lines} lines" for path, name, lines, _ in found if lines > MOST_FUNCTION_LINES] == []


def test_functions_have_few_arguments() -> None:
    found = [(path.relative_to(ROOT), *each) for path in SOURCES for each in functions(ast.parse(path.read_text()))]
    called = [(path, name, n) for path, name, _, n in found if not name.startswith("test_")]
    assert [f"{path}: {name}: {n} arguments" for path, name, n in called if n > MOST_ARGUMENTS] == []
