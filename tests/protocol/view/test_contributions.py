"""Sums of receipts: exact in any order, bounded, and read back as they were written; what is no such thing is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.limits import WHOLE
from gwtf_p2p.protocol.view import contributions as module
from gwtf_p2p.protocol.view.contributions import OTHERS, Contribution, Contributions
from gwtf_p2p.protocol.view.contributions_told import pages_of, told
from gwtf_p2p.protocol.wire.contribution_record import PAGE_LINES, decode_contributions
from gwtf_p2p.protocol.wire.receipts import MOST_PAGES, Receipt, ReceiptLine
from gwtf_p2p.protocol.wire.records import encode

RUN = RunId("run")
ME, HONEST, LIAR = PeerId("data_0"), PeerId("data_1"), PeerId("data_2")

lines = st.builds(
    ReceiptLine,
    st.integers(0, 3).map(Stage),
    st.sampled_from("abcde").map(PeerId),
    st.integers(0, 9),
    st.integers(0, 10**6),
    st.integers(0, 3),
)
receipts = st.lists(st.builds(Receipt, st.just(ME), st.just(0), st.just(0), st.lists(lines, max_size=6).map(tuple)), max_size=8)


def sums_of(peers: int, microbatches: int = 1) -> Contributions:
    """Peer p0 has done one microbatch more than p1, and so on."""
    return Contributions({(Stage(1), PeerId(f"p{n:04}")): Contribution(microbatches + peers - n, 10, 1) for n in range(peers)})


@given(receipts, st.randoms())
def test_sums_are_those_of_all_receipts_in_whatever_order(given_: list[Receipt], random: st.DataObject) -> None:
    sums = Contributions()
    for receipt in given_:
        sums = sums.plus([receipt])
    shuffled = list(given_)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Contributions().plus(shuffled).to_bytes() == sums.to_bytes()
    expected: Counter[tuple[Stage, PeerId]] = Counter()
    for receipt in given_:
        for line in receipt.lines:
            expected[line.stage, line.peer] += line.microbatches
    assert {place: c.microbatches for place, c in sums.of.items()} == dict(expected)
    assert Contributions.from_bytes(sums.to_bytes()) == sums


@given(st.binary(max_size=200))
def test_bytes_that_are_no_sums_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="contributions"):
        Contributions.from_bytes(data)


@pytest.mark.parametrize(
    "rows", ['[1,[[1,"p",-1,0,0]]]', '[1,[[1,"p",1.5,0,0]]]', '[1,[[1,"p",true,0,0]]]', "[2,[]]", "[1,[[]]]"]
)
def test_sums_of_what_cannot_be_counted_are_refused(rows: str) -> None:
    with pytest.raises(RemoteProtocolError, match="contributions"):
        Contributions.from_bytes(rows.encode())


def test_beyond_the_bound_the_least_are_summed_up_and_no_microbatch_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PLACES", 10)
    receipt = Receipt(ME, 0, 0, tuple(ReceiptLine(Stage(1), peer, c.microbatches) for (_, peer), c in sums_of(40).of.items()))
    sums = Contributions().plus([receipt]).plus([receipt])
    assert len(sums.of) == 10 and (Stage(1), OTHERS) in sums.of and (Stage(1), PeerId("p0000")) in sums.of
    assert sums.of_stage(Stage(1)) == 2 * sums_of(40).of_stage(Stage(1))


@pytest.mark.parametrize("peers", [0, 1, PAGE_LINES, PAGE_LINES + 1, MOST_PAGES * PAGE_LINES + 5])
def test_pages_fit_into_records_and_hold_every_microbatch(peers: int) -> None:
    long = {(stage, PeerId(f"{peer:Q<46}")): c for (stage, peer), c in sums_of(peers, 10**9).of.items()}
    pages = pages_of(ME, RUN, (1, 7), Contributions(long).with_rebuilt(map(Stage, range(1, 20)), 1 << 40), 3)
    read = [decode_contributions(encode(page)) for page in pages]
    found = told(read, {ME})
    assert (found.epoch, found.version, found.agree, found.data_peers, found.complete) == (1, 7, 1, 1, True)
    assert found.contributions.of_stage(Stage(1)) == Contributions(long).of_stage(Stage(1))
    assert len(pages) <= MOST_PAGES


@pytest.mark.parametrize("stages", [900, 1026])
def test_sums_of_however_many_stages_fit_into_the_pages(stages: int) -> None:
    everywhere = {(Stage(k), PeerId(peer)): Contribution(1 + k) for k in range(stages) for peer in "ab"}
    pages = pages_of(ME, RUN, (0, 1), Contributions(everywhere), 1)
    assert len(pages) == MOST_PAGES and [p.pages for p in pages] == [len(pages)] * len(pages)
    assert [decode_contributions(encode(page)) for page in pages] == pages


def test_sums_stay_at_what_can_be_told() -> None:
    most = ReceiptLine(Stage(1), HONEST, 1 << 40, 1 << 40, 1 << 40)
    receipt = Receipt(ME, 0, 0, (most,))
    page, *_ = pages_of(ME, RUN, (0, 1), Contributions().plus([receipt]).plus([receipt]), 1)
    assert decode_contributions(encode(page)).lines[0].busy_ms == 1 << 41
    full = Contributions({(Stage(1), HONEST): Contribution(WHOLE, WHOLE - 1, WHOLE)}).plus([receipt])
    assert full.of[Stage(1), HONEST] == Contribution(WHOLE, WHOLE, WHOLE)
    assert Contributions.from_bytes(full.to_bytes()) == full
    (page,) = pages_of(ME, RUN, (0, 1), full, 1)
    assert decode_contributions(encode(page)) == page


def test_stages_that_were_rebuilt_are_part_of_the_sums() -> None:
    """In their bytes, in what is published, and to whoever reads it; what was never rebuilt costs no byte."""
    plain = Contributions({(Stage(1), PeerId("a")): Contribution(3, 2, 1)})
    once = plain.with_rebuilt([Stage(3), Stage(2)], 7)
    assert once.rebuilt == ((2, 7), (3, 7)) and once.with_rebuilt([Stage(2)], 7) == once
    more = once.plus([]).with_rebuilt([Stage(1)], 9)
    assert more.rebuilt == ((2, 7), (3, 7), (1, 9))
    assert Contributions.from_bytes(more.to_bytes()) == more and b"7" not in plain.to_bytes()
    pages = [decode_contributions(encode(page)) for page in pages_of(ME, RUN, (1, 9), more, 1)]
    assert told(pages, {ME}).contributions == more
    for row in ("[1,-1]", "[1]", '["a",1]', "[1,2.5]"):
        with pytest.raises(RemoteProtocolError, match="contributions"):
            Contributions.from_bytes(b"[1,[],[" + row.encode() + b"]]")


def test_a_missing_page_is_told() -> None:
    pages = pages_of(ME, RUN, (0, 7), sums_of(PAGE_LINES + 1), 3)
    assert not told(pages[:1], {ME}).complete and told(pages, {ME}).complete


@pytest.mark.parametrize("position", [(0, 7), (0, 10**6), (3, 7)])
def test_one_that_lies_changes_nothing_among_three(position: tuple[int, int]) -> None:
    said = [*pages_of(ME, RUN, (0, 7), sums_of(3), 1), *pages_of(HONEST, RUN, (0, 7), sums_of(3), 1)]
    lie = pages_of(LIAR, RUN, position, sums_of(3, 10**6), 1)
    assert told([*said, *lie], {ME, HONEST, LIAR}).contributions == sums_of(3)


def test_only_data_peers_are_asked() -> None:
    lie = pages_of(LIAR, RUN, (0, 7), sums_of(3), 1)
    assert told(lie, {ME, HONEST}).data_peers == 0 and not told(lie, {ME}).contributions.of


def test_data_peers_that_are_a_version_apart_are_no_liars() -> None:
    said = [*pages_of(ME, RUN, (0, 7), sums_of(3), 1), *pages_of(HONEST, RUN, (0, 8), sums_of(4), 1)]
    found = told(said, {ME, HONEST})
    assert (found.version, found.agree, found.data_peers) == (7, 1, 1) and found.contributions == sums_of(3)
