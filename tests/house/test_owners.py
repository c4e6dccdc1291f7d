"""State has one owner: what a machine knows of a microbatch, and its part in an iteration, is changed by methods of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROTOCOL = Path(__file__).parents[2] / "gwtf_p2p" / "protocol"

# The name under which others know it -> the module that it is owned by.
OWNERS = {
    "held": "core/lifecycle.py",
    "participant": "commit/participant.py",
    "role": "commit/role.py",
    "progress": "commit/progress.py",
    "share": "commit/own_share.py",
    "promise": "commit/promise.py",
    "inquiring": "commit/inquiring.py",
    "others": "membership/others.py",
    "wanted": "membership/wanted_weights.py",
    "_lost": "core/lost_peers.py",
    "questions": "core/questions.py",
    "holdings": "core/holdings.py",
    "unrouted": "transfer/unrouted.py",
    "computing": "peer/computing.py",
    "injecting": "peer/injecting.py",
    "room": "peer/room.py",
    "under_way": "commit/attempt_under_way.py",
}
CHANGES = {"add", "append", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault", "update"}


def name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def changed(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, owner and field of every assignment to a field of something, and of every change of a collection in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.lineno, name_of(node.value), node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            field = node.func.value
            if isinstance(field, ast.Attribute):
                yield node.lineno, name_of(field.value), field.attr


def test_a_change_from_outside_is_seen() -> None:
    code = "held.asked += 1; self.participant.counted.add(m); a, held.ahead = b; held.story; del held.loss"
    found = {f"{owner}.{field}" for _, owner, field in changed(ast.parse(code))}
    assert found == {"held.asked", "participant.counted", "held.ahead", "held.loss"}


@pytest.mark.parametrize("owner", OWNERS)
def test_only_its_owner_changes_it(owner: str) -> None:
    for path in sorted(PROTOCOL.rglob("*.py")):
        if str(path.relative_to(PROTOCOL)) != OWNERS[owner]:
            wrong = [f"{line}: {name}.{field}" for line, name, field in changed(ast.parse(path.read_text())) if name == owner]
            assert not wrong, f"{path.relative_to(PROTOCOL)} changes {wrong}"
