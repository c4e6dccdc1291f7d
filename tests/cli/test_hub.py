"""A machine without the hub is told so in seconds, and the libraries are told not to ask again and again."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from gwtf_p2p.cli.shared.hub import CONNECT_S, OFFLINE, hub_names, settle_hub
from gwtf_p2p.cli.shared.run_file import MODELS, check_settings

PLAIN = {
    "run_id": "r",
    "seed": 0,
    "sequence_length": 8,
    "microbatch_size": 1,
    "microbatches_per_data_peer": 1,
    "optimizer": {"learning_rate": 1e-3},
}


def names(**fields: object) -> list[str]:
    run = check_settings({**PLAIN, **fields}, "run.toml")
    return hub_names(run, fields.get("model", "tiny-llama"), tuple(MODELS))


def test_only_what_is_not_here_is_looked_for_on_the_hub() -> None:
    assert names() == []
    assert names(model="tiny-gpt2", dataset="text:*.py") == []
    assert names(model="own.json", dataset="./books") == []
    assert names(model="OWNER/M", dataset="OWNER/D", tokenizer="OWNER/M") == ["OWNER/M", "OWNER/D"]
    assert names(weights="OWNER/M", evaluation={"dataset": "OWNER/E", "every": 5}) == ["OWNER/M", "OWNER/E"]


@pytest.fixture(autouse=True)
def _at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gwtf_p2p.cli.shared.hub.note", lambda text: print(text, file=sys.stderr))


def test_a_hub_that_does_not_answer_is_asked_once_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def nobody(address: tuple[str, int], timeout: float) -> None:
        asked.append((address, timeout))
        raise OSError(-2, "Name or service not known")

    environment: dict[str, str] = {"HF_ENDPOINT": "https://hub.example"}
    monkeypatch.setattr("os.environ", environment)
    settle_hub(["OWNER/D"], nobody)
    settle_hub(["OWNER/D"], nobody)
    assert asked == [(("hub.example", 443), CONNECT_S)]
    assert all(environment[name] == "1" for name in OFFLINE)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "asking https://hub.example for OWNER/D"
    assert told[1].startswith("hub.example does not answer (Name or service not known)")


def test_a_hub_that_answers_is_left_to_the_libraries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    settle_hub(["OWNER/D"], lambda *_: SimpleNamespace(close=list))
    settle_hub([], lambda *_: pytest.fail("nothing is asked for"))
    assert environment == {} and capsys.readouterr().err == "asking https://huggingface.co for OWNER/D\n"
