"""How the next token is chosen, and which prompts there is room for."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from gwtf_p2p.live.text.sampling import Sampling, choose
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.data.held_out import prompt_ids
from gwtf_p2p.training.data.tokenizer import ByteTokenizer

LOGITS_V = torch.log(torch.tensor([0.5, 0.1, 0.3, 0.1]))
RUN = RunRecord(RunId("r"), {}, ((0, 1),), seed=0, sequence_length=8, microbatch_size=1, microbatches_per_data_peer=1)


def drawn(how: Sampling, count: int = 2000) -> Counter[int]:
    generator = torch.Generator().manual_seed(how.seed)
    return Counter(choose(LOGITS_V, how, generator) for _ in range(count))


def test_without_a_temperature_it_is_the_likeliest_token_and_the_first_of_equals() -> None:
    assert drawn(Sampling(), 10) == {0: 10}
    assert choose(torch.zeros(4), Sampling(), torch.Generator()) == 0


def test_tokens_are_drawn_by_their_share_and_alike_for_a_seed() -> None:
    found = drawn(Sampling(temperature=1.0, seed=3))
    assert found[0] / 2000 == pytest.approx(0.5, abs=0.05) and found[2] / 2000 == pytest.approx(0.3, abs=0.05)
    assert found == drawn(Sampling(temperature=1.0, seed=3)) != drawn(Sampling(temperature=1.0, seed=4))


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {0}), (0.6, {0, 2}), (0.8, {0, 2}), (0.85, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_the_nucleus_is_of_the_fewest_tokens_that_have_the_share(top_p: float, kept: set[int]) -> None:
    assert set(drawn(Sampling(temperature=1.0, top_p=top_p))) == kept


def test_a_low_temperature_is_nearly_greedy() -> None:
    assert drawn(Sampling(temperature=0.05), 200) == {0: 200}


def test_a_prompt_leaves_room_for_a_token() -> None:
    assert prompt_ids(RUN, ByteTokenizer(), "abcdefg") == tuple(b"abcdefg")
    with pytest.raises(InputError, match=r"expected at most 7 tokens.*has 8"):
        prompt_ids(RUN, ByteTokenizer(), "abcdefgh")


def test_an_empty_prompt_is_the_end_of_the_document_before() -> None:
    assert prompt_ids(RUN, ByteTokenizer(), "") == (ByteTokenizer.end_id,)
