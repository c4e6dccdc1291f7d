"""What builds the site refuses what it would otherwise show wrongly or leave out."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest

TOOLS = Path(__file__).parents[2] / "docs" / "site_tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """One of the tools, which are scripts beside each other and no package."""
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    return importlib.import_module(request.param)


@pytest.mark.parametrize("tool", ["sequence_svg"], indirect=True)
def test_a_diagram_shows_every_participant_message_and_note(tool: ModuleType) -> None:
    svg = tool.render(
        "sequenceDiagram\n participant A as first <1>\n participant B\n A->>B: ask\n B-->>A: tell\n Note over A,B: end"
    )
    for text in ("first &lt;1&gt;", ">B<", ">ask<", ">tell<", ">end<"):
        assert text in svg
    assert svg.count("stroke-dasharray") == 3  # two lines of life, one answer


@pytest.mark.parametrize("tool", ["sequence_svg"], indirect=True)
@pytest.mark.parametrize("line", ["A->>C: to nobody", "loop forever", "A->B: another arrow", "Note left of A: aside"])
def test_a_line_that_cannot_be_drawn_is_named(tool: ModuleType, line: str) -> None:
    with pytest.raises(ValueError, match=line.split(":")[0]):
        tool.render(f"sequenceDiagram\n participant A\n participant B\n {line}")


@pytest.mark.parametrize("tool", ["run_reference"], indirect=True)
def test_the_reference_has_ranges_and_meanings_and_does_without_neither(tool: ModuleType) -> None:
    page = tool.page()
    assert "| `microbatch_size` | whole number, at least 1 and at most" in page
    assert "| `recovery` | `exact` or `fast` |" in page

    @dataclass
    class Settings:
        colour: Annotated[str, "of the run"] = "red"
        shade: str = "dark"

    with pytest.raises(ValueError, match=r"Settings\.shade"):
        tool.table(Settings)


@pytest.mark.parametrize("tool", ["gather"], indirect=True)
def test_links_between_pages_become_links_of_the_site(tool: ModuleType) -> None:
    assert tool.with_links("[a](ARCHITECTURE.md#words)", "") == "[a](architecture.md#words)"
    assert tool.with_links("[b](../README.md)", "peers") == "[b](index.md)"
    assert tool.with_links("![c](docs/images/swarm.svg)", "") == "![c](images/swarm.svg)"
    assert tool.with_links("[d](docs/run.toml)", "") == "`docs/run.toml`"
    with pytest.raises(ValueError, match=r"nowhere\.md"):
        tool.with_links("[e](nowhere.md)", "")
