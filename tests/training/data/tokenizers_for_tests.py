"""Small tokenizers of the usual kinds, made here: no network is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"
SENTENCES = [f"the {a} river runs {b} under the old bridge, and {a} times {b} is it seen." for a in range(9) for b in "abcxyz"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


def byte_level(folder: Path, **options: Any) -> Path:
    """As GPT-2: a word takes the space before it along."""
    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = [END, "<|begin|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    return save(fast, folder, **options)


def with_a_space_in_front(folder: Path, **options: Any) -> Path:
    """As LLaMA 2: a space is put in front of every text."""
    fast = tokenizers.Tokenizer(models.BPE(unk_token=END))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Replace("▁", " ")
    fast.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # in training alone, as SentencePiece does
    fast.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=120, special_tokens=[END]))
    fast.pre_tokenizer = None
    return save(fast, folder, **options)


def beginning(folder: Path) -> Path:
    """As LLaMA 3: a token of its own begins every text."""
    byte_level(folder)
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = fast.token_to_id("<|begin|>")
    fast.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", begin)]
    )
    return save(fast, folder, bos_token="<|begin|>")


def with_a_gap(folder: Path, end: int) -> Path:
    """A letter is a token, and the end's id is far above theirs, as where tokens were added later."""
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz .")}
    fast = tokenizers.Tokenizer(models.WordLevel({**letters, END: end}, unk_token="."))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return save(fast, folder)


def save(fast: Any, folder: Path, chat_template: str = "", **options: Any) -> Path:
    """Write what `load_tokenizer` reads."""
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, **{"eos_token": END, **options})
    if chat_template:
        wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)
    return folder
