"""The page in a real browser, over hand-made records: it fits every screen, both colour schemes, keyboards and screen readers.

Screenshots are kept in $GWTF_SCREENSHOTS where that is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.drawing.axes import label, ticks
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource, PathType, PeerState
from tests.monitor.page.chromium import Chromium, needs_axe, needs_browser
from tests.monitor.page.test_api import FLOWS, Served, serving
from tests.monitor.watched import A1, A2, DATA, RUN, ledger, record, swarm

pytestmark = [pytest.mark.browser, needs_browser]

SCREENSHOTS = os.environ.get("GWTF_SCREENSHOTS", "")
B2, NEW = PeerId("QmpeerB2"), PeerId("QmpeerA3")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture
def shown(browser: Chromium) -> Iterator[tuple[Chromium, Served]]:
    """The page after some iterations: a peer that is silent, one that joins, one that is gone, paths of all kinds."""
    with serving() as served:
        for version in range(3, 40):
            served.look(busy(version))
        served.look([*busy(40), record(PeerId("Qmgone00"), 1)])
        served.state.hear_contributions(ledger(41), {DATA})
        served.look([*busy(41), record(NEW, 1, state=PeerState.SYNCING)], frozenset({A2}))
        browser.show(1440, "light")
        browser.driver.get(f"{served.server.url}runs/{RUN.run_id}")
        browser.until("the picture", lambda: browser.count(".node") == 7 and browser.count("#loss-chart canvas"))
        yield browser, served
        assert browser.errors() == []
        browser.driver.get("about:blank")


def busy(version: int) -> list[Any]:
    progress = {
        "loss": 4.0 - version / 20,
        "iteration_s": 2.0,
        "microbatches": 4.0 * version,
        "held_out_loss": 4.2 - version / 20,
    }
    records = swarm(version, **{**FLOWS, "progress": progress})
    data, a1, a2, b1 = records
    punched = LinkMeasurement(A1, 0.08, 2e6, LinkSource.TRAFFIC, 3, 0.0, PathType.PUNCHED)
    relayed = LinkMeasurement(DATA, 0.08, 2e6, LinkSource.TRAFFIC, 3, 0.0, PathType.RELAYED)
    data, b1 = replace(data, links=(punched,)), replace(b1, links=(relayed,))
    return [data, a1, a2, b1, record(B2, 2, weights_version=version, path=PathType.RELAYED)]


def test_the_page_fits_every_screen_in_both_colour_schemes(shown: tuple[Chromium, Served]) -> None:
    browser, _ = shown
    grounds = set()
    for scheme in ("light", "dark"):
        for width in (360, 768, 1440):
            browser.show(width, scheme)
            fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            browser.until(f"no overflow at {width} px", lambda fits=fits: browser.ask(fits))
            browser.until(
                "the picture as wide as the page", lambda: browser.ask("document.querySelector('#swarm svg').clientWidth > 250")
            )
            tall = "[...document.querySelectorAll('th')].filter((th) => th.offsetHeight > 44).map((th) => th.textContent)"
            assert browser.ask(tall) == [], "no heading is broken letter by letter"
            grounds.add(browser.ask("getComputedStyle(document.body).backgroundColor"))
            if SCREENSHOTS:
                browser.screenshot(Path(SCREENSHOTS) / f"{scheme}-{width}.png")
    assert len(grounds) == 2


def test_the_picture_tells_states_and_paths_apart(shown: tuple[Chromium, Served]) -> None:
    browser, _ = shown
    assert {kind: browser.count(f".node.{kind}") for kind in ("ONLINE", "silent", "SYNCING", "GONE")} == {
        "ONLINE": 4, "silent": 1, "SYNCING": 1, "GONE": 1,
    }  # fmt: skip
    dashes = {
        browser.ask(f"getComputedStyle(document.querySelector('.hop.{path}')).strokeDasharray")
        for path in ("public", "punched", "relayed")
    }
    assert len(dashes) == 3
    assert "not answering" in browser.text("#legend") and "through a circuit relay" in browser.text("#legend")
    label = browser.ask("document.querySelector('.node.silent').getAttribute('aria-label')")
    assert label.startswith(f"{A2[-6:]}, stage 1, not answering")
    assert browser.text("#flows tbody tr td:nth-child(4)").startswith("500 ms")


def test_changes_arrive_without_a_reload(shown: tuple[Chromium, Served]) -> None:
    browser, served = shown
    browser.ask("window.mark = 'the same page'")
    browser.until("that it follows", lambda: browser.text("#connection") == "live")
    served.look([r for r in busy(50) if r.peer != B2])
    browser.until("the newest iteration", lambda: browser.text("#f-iterations") == "50 of 100")
    browser.until("who is gone", lambda: "is gone" in browser.text("#events li:first-child, #events"))
    assert browser.ask("window.mark") == "the same page"
    assert browser.count(".node.GONE") == 3, "the peer that left, the one before it, and the one that was joining"


def test_a_peer_is_reached_and_shown_by_keyboard(shown: tuple[Chromium, Served]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser, _ = shown
    browser.driver.execute_script("document.querySelector('.node[tabindex=\"0\"]').focus()")
    assert browser.count(".node[tabindex='0']") == 1, "one stop for Tab, arrows inside"
    browser.press(Keys.ARROW_RIGHT, Keys.ENTER)
    browser.until("the peer's details", lambda: "Contribution" in browser.text("#drawer-body"))
    assert browser.ask("document.getElementById('drawer').open")
    browser.press(Keys.ESCAPE)
    browser.until("the page again", lambda: not browser.ask("document.getElementById('drawer').open"))


def test_charts_are_zoomed_by_buttons_and_told_in_words(shown: tuple[Chromium, Served]) -> None:
    browser, _ = shown
    label = "document.getElementById('loss-chart').getAttribute('aria-label')"
    whole = browser.ask(label)
    assert "Loss over tokens: 3.8500 at" in whole
    for button in ("in", "right"):
        browser.driver.execute_script(f"document.querySelector('[data-zoom={button}]').click()")
    browser.until("a part of the run", lambda: browser.ask(label) != whole)
    browser.driver.execute_script("document.querySelector('[data-zoom=all]').click()")
    browser.until("the whole run again", lambda: browser.ask(label) == whole)


def test_its_axes_are_those_of_the_pictures_in_reports(shown: tuple[Chromium, Served]) -> None:
    browser, _ = shown
    told = "Promise.all([import('../static/axes.js')]).then(([axes]) => arguments[arguments.length - 1](%s))"
    for low, high, about in ((0.0, 1.0, 6), (3.1, 4.05, 5), (0, 164_000, 9), (0.0, 0.37, 8), (-2.5, 2.5, 4), (1e9, 3e12, 6)):
        found = browser.driver.execute_async_script(told % f"axes.ticks({low}, {high}, {about})")
        assert found == pytest.approx(ticks(low, high, about))
        assert browser.driver.execute_async_script(told % f"{found}.map(axes.label)") == [label(tick) for tick in found]


def test_who_has_contributed_what_is_told_as_the_ledger_says(shown: tuple[Chromium, Served]) -> None:
    browser, _ = shown
    browser.until("the ledger", lambda: "After 41 iterations, as 1 of 1 data peers say" in browser.text("#board-of"))
    row = browser.ask("[...document.querySelectorAll('#board tbody tr')[2].cells].map((cell) => cell.textContent)")
    assert row[1:] == [A1[-6:], "123", "1", "3936", "2.5 s", "2", "yes"]
    browser.driver.execute_script("document.querySelectorAll('#board .link')[2].click()")
    browser.until("its details", lambda: "123 microbatches, 3936 tokens" in browser.text("#drawer-body"))
    assert "25.0 %" in browser.text("#drawer-body") and "Audits passed2" in browser.text("#drawer-body")
    browser.driver.execute_script("document.getElementById('drawer').close()")


def test_the_page_loads_nothing_from_elsewhere(shown: tuple[Chromium, Served]) -> None:
    browser, served = shown
    loaded = browser.ask("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded and all(name.startswith(served.server.url) for name in loaded)


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(shown: tuple[Chromium, Served], scheme: str) -> None:
    browser, _ = shown
    for width, drawer in ((1440, False), (360, False), (1440, True)):
        browser.show(width, scheme)
        if drawer:
            browser.driver.execute_script("document.querySelector('#board .link').click()")
            browser.until("the peer's details", lambda: "Contribution" in browser.text("#drawer-body"))
        assert browser.barriers() == [], f"{scheme}, {width} px, {'with' if drawer else 'without'} a peer's details"
