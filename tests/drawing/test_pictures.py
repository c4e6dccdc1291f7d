"""Pictures of plans and runs: every peer and flow is in them, what is played is what the trace tells, names stay text."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gwtf_p2p.cli.main import main
from gwtf_p2p.cli.shared.pictures import bars_of_files
from gwtf_p2p.drawing import svg
from gwtf_p2p.drawing.axes import label, ticks
from gwtf_p2p.drawing.files import letters_are_drawn
from gwtf_p2p.drawing.flows import Flows, Place, flow_picture
from gwtf_p2p.drawing.replay import Bar, iteration, iteration_number, replay_html
from gwtf_p2p.simulation.scenario.scenario import load_scenario
from tests.monitor.page.chromium import Chromium, needs_axe, needs_browser

SCENARIO = Path(__file__).parents[2] / "experiments" / "scenarios" / "homogeneous_churn_0.toml"
SVG = "{http://www.w3.org/2000/svg}"

PROBLEM = {
    "name": "two_ways",
    "stages": 1,
    "peers": [
        {"id": "d", "role": "data", "stage": 0, "demand": 3},
        {"id": "near", "role": "stage", "stage": 1, "capacity": 2},
        {"id": "far", "role": "stage", "stage": 1, "capacity": 2},
        {"id": "spare", "role": "stage", "stage": 1, "capacity": 2},
    ],
    "links": [
        {"from": a, "to": b, "cost": cost}
        for name, cost in (("near", 1), ("far", 5), ("spare", 9))
        for a, b in (("d", name), (name, "d"))
    ],
}


def drawn(picture: str) -> tuple[list[str], list[tuple[str, float]]]:
    """The texts of a picture, and its curves: what each says and how wide it is."""
    root = ElementTree.fromstring(picture)
    texts = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
    curves = [("".join(node.itertext()), float(node.get("stroke-width", "0"))) for node in root.iter(f"{SVG}path")]
    return texts, curves


def test_flows_show_every_peer_and_are_as_wide_as_what_they_carry() -> None:
    places = {"d<1>": Place(0, 4), "a": Place(1, 2), "b": Place(1, 3), "idle": Place(1)}
    texts, curves = drawn(
        flow_picture(Flows(1, {("d<1>", "a", "d<1>"): 1, ("d<1>", "b", "d<1>"): 3}, places, "T & t", ["note"]))
    )
    assert {"T & t", "note", "stage 1", "a", "1 of 2", "b", "3 of 3", "idle", "not used"} <= set(texts)
    assert texts.count("d<1>") == 2  # where a flow begins, and where it ends
    wide = dict(curves)
    assert wide["d<1> to b: 3 of d<1>"] > wide["d<1> to a: 1 of d<1>"] > 0


def test_a_plan_is_drawn_with_the_peers_that_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem, picture = tmp_path / "problem.json", tmp_path / "plan.svg"
    problem.write_text(json.dumps(PROBLEM))
    assert main(["plan", str(problem), "--draw", str(picture)]) == 0
    texts, curves = drawn(picture.read_text())
    assert "two_ways: 3 flows by gwtf, total cost 14" in texts
    assert {"2 of 2", "1 of 2", "0 of 2", "3 of 3"} <= set(texts)
    assert {told for told, _ in curves} == {"d to near: 2 of d", "near to d: 2 of d", "d to far: 1 of d", "far to d: 1 of d"}
    assert "3 flows" in capsys.readouterr().out


def test_a_png_shows_the_same_picture_and_its_words(tmp_path: Path) -> None:
    resvg_py = pytest.importorskip("resvg_py")
    problem, picture, same = tmp_path / "problem.json", tmp_path / "plan.png", tmp_path / "plan.svg"
    problem.write_text(json.dumps(PROBLEM))
    assert [main(["plan", str(problem), "--draw", str(path)]) for path in (picture, same)] == [0, 0]
    wordless = re.sub("<text.*?</text>", "", same.read_text())
    assert picture.read_bytes() == bytes(resvg_py.svg_to_bytes(svg_string=same.read_text(), zoom=2))
    assert picture.read_bytes() != bytes(resvg_py.svg_to_bytes(svg_string=wordless, zoom=2))


def test_a_machine_without_a_font_is_told_before_a_wordless_png(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(svg, "FONTS", "No Such Font")
    if letters_are_drawn():
        pytest.skip("the renderer takes a font of this machine for whatever it does not find")
    assert main(["plan", str(tmp_path / "none.json"), "--draw", str(tmp_path / "plan.png")]) == 2
    assert "PNG needs a font" in capsys.readouterr().err


def test_png_without_its_extra_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert main(["plan", str(tmp_path / "none.json"), "--draw", str(tmp_path / "plan.png")]) == 2
    assert "gwtf-p2p[draw]" in capsys.readouterr().err


def test_a_long_note_widens_the_picture() -> None:
    note = "a note that is much longer than two columns of boxes are wide, and is read to its end " * 3
    root = ElementTree.fromstring(flow_picture(Flows(1, {}, {"d": Place(0)}, "t", [note])))
    assert float(root.get("width", "0")) > 6 * len(note)


@pytest.mark.parametrize("name", ["plan.gif", "nowhere/plan.svg"])
def test_a_file_that_cannot_be_drawn_is_told_before_the_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tmp_path / "none.json"), "--draw", str(tmp_path / name)]) == 2
    assert "--draw: expected a file" in capsys.readouterr().err


# ---- an iteration that plays


def played(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    told: dict[str, object] = json.loads(found[1])
    return told


@pytest.mark.parametrize(
    ("about", "number"),
    [("data_0/3/1", 3), ("iteration 4", 4), ("iteration", None), ("a/b/1", None), ("", None), ("1/2", None)],
)
def test_a_bar_belongs_to_the_iteration_of_its_microbatch(about: str, number: int | None) -> None:
    assert iteration_number(about) == number


def test_an_iteration_begins_at_nought_and_a_name_is_never_markup() -> None:
    bars = [
        Bar("d", "embed", "d/7/0", 10.0, 10.5),
        Bar("d", "forward", "d/7/0", 10.5, 11.0, "</script><b>"),
        Bar("</script><b>", "forward", "d/7/0", 11.0, 12.0),
        Bar("d", "embed", "d/8/0", 12.0, 12.5),
        Bar("unknown", "forward", "d/7/1", 1.0, 2.0),
    ]
    shown = iteration(bars, {"d": 0, "</script><b>": 1}, 7)
    assert [(b.began, b.ended) for b in shown.bars] == [(0.0, 0.5), (0.5, 1.0), (1.0, 2.0)]
    page = replay_html(shown, "<i>t</i>")
    assert page.count("</script>") == 2 and "{{" not in page
    assert page.count("&lt;i&gt;t&lt;/i&gt;, iteration 7") == 2
    assert "default-src 'none'" in page and "http" not in re.sub(r"http-equiv|http://www\.w3\.org/2000/svg", "", page)
    assert played(page)["peers"] == [["d", 0], ["</script><b>", 1]]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the simulator: its trace, its flows, and its last iteration as a page, in one folder."""
    folder = tmp_path_factory.mktemp("traced")
    short = SCENARIO.read_text().replace("iterations = 20", "iterations = 3", 1)
    (folder / "short.toml").write_text(short)
    for table in SCENARIO.parent.glob("ten_regions.toml"):
        (folder / table.name).write_text(table.read_text())
    run = ["sim", str(folder / "short.toml"), "--seeds", "0"]
    assert load_scenario(folder / "short.toml").iterations == 3
    assert main([*run, "--trace", str(folder / "t.jsonl"), "--draw", str(folder / "run.html")]) == 0
    return folder


def test_a_simulated_iteration_is_played_as_the_trace_tells_it(traced: Path) -> None:
    told = played((traced / "run.html").read_text())
    bars, stages = bars_of_files([traced / "t.jsonl"])
    own = [bar for bar in bars if iteration_number(bar.about) == 2]
    assert len(told["bars"]) == len(own) > 100  # type: ignore[arg-type]
    assert set(stages.values()) == {0, 1, 2, 3, 4, 5, 6}
    assert main(["replay", str(traced / "t.jsonl"), "--draw", str(traced / "again.html")]) == 0
    assert played((traced / "again.html").read_text()) == told
    assert main(["replay", str(traced / "t.jsonl"), "--draw", str(traced / "first.html"), "--iteration", "0"]) == 0
    assert "iteration 0" in (traced / "first.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--iteration", "9", "--draw", "x.html"], "expected one from 0 to 2"),
        (["--iteration", "1"], "expected --draw"),
        (["--draw", "x.svg"], "ending in .html"),
    ],
)
def test_an_iteration_that_there_is_not_is_told(
    words: list[str],
    told: str,
    traced: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["replay", str(traced / "t.jsonl"), *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "nonsense\n", '{"at_s": 1, "span": "x"}\n', "[1]\n", '{"event": "Other"}\n'])
def test_what_is_neither_trace_nor_log_is_told(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text(text)
    assert main(["replay", str(file), "--draw", str(tmp_path / "x.html")]) == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.browser
@needs_browser
def test_the_page_plays_stops_and_steps_in_a_browser(traced: Path, tmp_path: Path) -> None:
    browser = Chromium(tmp_path / "profile")
    try:
        browser.driver.get(f"file://{traced / 'run.html'}")
        assert browser.count("#gantt rect") > 100 and browser.errors() == []
        assert browser.text("#clock") == "0.00 s"
        browser.press(" ")
        browser.until("time passes", lambda: float(browser.text("#clock").split()[0]) > 0)
        browser.press(" ")
        assert browser.text("#play") == "Play"
        stopped = browser.text("#clock")
        browser.press("\ue014")  # the right arrow
        assert browser.text("#clock") != stopped and "peers compute" in browser.text("#now")
        for width in (360, 1440):
            browser.show(width, "dark")
            assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
        assert browser.errors() == []
    finally:
        browser.driver.quit()


@pytest.mark.browser
@needs_browser
@needs_axe
def test_axe_finds_nothing_serious_on_a_page_that_plays(traced: Path, tmp_path: Path) -> None:
    browser = Chromium(tmp_path / "profile")
    try:
        browser.driver.get(f"file://{traced / 'run.html'}#1.5")
        for scheme, width in (("light", 1440), ("dark", 1440), ("light", 360), ("dark", 360)):
            browser.show(width, scheme)
            assert browser.barriers() == [], f"{scheme}, {width} px"
    finally:
        browser.close()


@pytest.mark.parametrize(
    "value, told", [(0.0, "0"), (0.25, "0.25"), (9999, "9999"), (20_000, "20 k"), (1.5e6, "1.5 M"), (2e12, "2 T")]
)
def test_lines_of_an_axis_say_round_values_in_few_digits(value: float, told: str) -> None:
    assert label(value) == told


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 12))
def test_an_axis_has_no_more_lines_than_there_is_room_for(low: float, span: float, about: int) -> None:
    assume(span >= 1e-9 * abs(low))  # no axis tells numbers apart that differ in their last bits
    found = ticks(low, low + span, about)
    assert len(found) <= about + 1 and all(low - span / 50 <= tick <= low + span * 1.02 for tick in found)
