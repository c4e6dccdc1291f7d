"""Ids are those of the whole text, of the tokenizer's own vocabulary, and end a document only where the tokenizer means it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data.tokenizer import PIECE_CHARACTERS, ByteTokenizer, load_tokenizer
from tests.training.data.tokenizers_for_tests import (
    CHATML,
    END,
    MARKED,
    SENTENCES,
    beginning,
    byte_level,
    with_a_gap,
    with_a_space_in_front,
)


@pytest.mark.parametrize("text", ["plain", "añ ☃ 𝄞", "", "a\x00b\r\n\t<0x41>"])
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_the_saved_byte_tokenizer_loads_in_transformers_with_the_same_ids(tmp_path: Path) -> None:
    ByteTokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.vocabulary, loaded.end_id) == (257, 256)
    text = "def f(x):\n\treturn 'añ ☃'"
    assert loaded.encode(text).tolist() == ByteTokenizer().encode(text).tolist()
    assert loaded.decode(loaded.encode(text)) == text


def test_the_name_of_the_end_is_text_in_what_is_exported_too(tmp_path: Path) -> None:
    ByteTokenizer().save_pretrained(tmp_path)
    text = "a<|endoftext|>b"
    as_trained = ByteTokenizer().encode(text).tolist()
    assert as_trained == list(text.encode())
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == as_trained
    assert ByteTokenizer().encode(text, special_tokens=True).tolist() == [97, 256, 98]


def test_a_special_tokens_name_is_text_unless_asked_for(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_level(tmp_path)))
    assert tokenizer.end_id not in tokenizer.encode(f"one{END}two").tolist()
    assert tokenizer.decode(tokenizer.encode(f"one{END}two")) == f"one{END}two"
    assert tokenizer.encode(f"one{END}two", special_tokens=True).tolist().count(tokenizer.end_id) == 1


@pytest.mark.parametrize("make", [byte_level, with_a_space_in_front])
def test_pieces_of_a_long_text_have_the_ids_of_the_whole(make: Callable[[Path], Path], tmp_path: Path) -> None:
    make(tmp_path)
    draw = random.Random(0)
    text = " ".join(draw.choice(SENTENCES) for _ in range(2000))
    assert len(text) > 5 * PIECE_CHARACTERS
    whole = AutoTokenizer.from_pretrained(tmp_path).encode(text, add_special_tokens=False)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode(text).tolist() == whole
    chunks = [text[at : at + 1000] for at in range(0, len(text), 1000)]
    assert [i for piece in tokenizer.pieces(chunks) for i in tokenizer.encode(piece).tolist()] == whole
    assert max(map(len, tokenizer.pieces(chunks))) <= PIECE_CHARACTERS


def test_a_text_without_a_space_is_cut_all_the_same(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_level(tmp_path)))
    text = "x" * (3 * PIECE_CHARACTERS)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_with_gaps_is_as_large_as_its_largest_id(tmp_path: Path) -> None:
    loaded = load_tokenizer(str(with_a_gap(tmp_path, 70_000)))
    assert (loaded.vocabulary, loaded.end_id) == (70_001, 70_000)
    assert loaded.encode("ab.").tolist() == [0, 1, 27]


def test_a_tokenizer_that_begins_texts_says_so(tmp_path: Path) -> None:
    begins, plain = load_tokenizer(str(beginning(tmp_path / "a"))), load_tokenizer(str(byte_level(tmp_path / "b")))
    assert begins.adds_begin and begins.begin_id is not None
    assert not plain.adds_begin
    assert begins.begin_id not in begins.encode("text").tolist(), "a document begins once, not every piece of it"
    assert begins.fingerprint != plain.fingerprint


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel({"w": 0}, unk_token="w"))
    PreTrainedTokenizerFast(tokenizer_object=fast).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="expected one with an end-of-text token"):
        load_tokenizer(str(tmp_path))


def test_an_unknown_tokenizer_is_named() -> None:
    with pytest.raises(InputError, match="tokenizer: /no/such: expected 'byte' or a hub name") as caught:
        load_tokenizer("/no/such")
    assert "\n" not in str(caught.value)


CONVERSATION = [
    {"role": "user", "content": "is it seen?"},
    {"role": "assistant", "content": "it is"},
    {"role": "user", "content": "where?"},
    {"role": "assistant", "content": "under the bridge"},
]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_of_a_conversation_the_answers_are_learnt(template: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_level(tmp_path, chat_template=template, eos_token="<|im_end|>")))
    ids, mask = tokenizer.chat(CONVERSATION)
    assert len(ids) == len(mask)
    learnt = tokenizer.decode(ids[mask.astype(bool)])
    assert learnt.replace("\n", "") == "it is<|im_end|>under the bridge<|im_end|>"
    assert "is it seen?" in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", "expected one with a chat template"),
        ("{{ raise_exception('no system role') }}", "its chat template takes no such messages"),
        ("{{ messages|length }} {% for m in messages %}{{ m.content }}{% endfor %}", "leaves earlier messages alone"),
    ],
)
def test_a_template_that_does_not_do_is_named_in_one_line(template: str, expected: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_level(tmp_path, chat_template=template)))
    with pytest.raises(InputError, match=expected) as caught:
        tokenizer.chat(CONVERSATION)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
