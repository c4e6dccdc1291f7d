"""The weights of a secret run go on with a text for who has its token, and for nobody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.support.friends.begin import begin
from experiments.support.friends.house import House

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]

TOKEN = ("--token", "sixteen characters of a token")
OTHER = ("--token", "another token, as long as that")
ASKS = ("generate", "def ", "--run_id", "friends", "--max_new_tokens", "3", "--timeout", "30")


def test_the_weights_of_a_secret_run_go_on_with_a_text_for_who_has_its_token(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        owner, _ = begin(house, 1, 1, TOKEN, TOKEN, admission="secret")
        asked = house.look("member", *ASKS, *TOKEN, "--json")
        refused = [house.look(name, *ASKS, *words) for name, words in (("stranger", ()), ("guesser", OTHER))]
        assert asked.lives[-1].process.wait(300) == 0, asked.screen
        found = json.loads(asked.screen[-1])
        assert len(found["tokens"]) == 3 and found["text"]
        for friend in refused:
            assert friend.lives[-1].process.wait(300) == 5, friend.screen
            house.until(friend, "token")
            assert not friend.said("Traceback")
        house.until_more(owner, 2)
