#!/usr/bin/env bash
# transformers 5.20.0 drops every space of a text that 4.57.6 and 5.23.0 tokenise right, from the same two files.
#
# Versions:  transformers 4.57.6, 5.20.0 and 5.23.0, each with the tokenizers release that it asks for.
# Behaviour: A tokenizer.json of the byte-level kind (GPT-2's way, spaces are part of the tokens), beside a
#            tokenizer_config.json that names LlamaTokenizerFast, as several published models have it: AutoTokenizer of 4.57.6
#            gives the ids that the tokenizers library itself gives for that file. The one of 5.20.0 gives others, and decodes
#            them to the text without its spaces. 5.23.0 gives the ids of 4.57.6 again, and warns
#            that the two files do not fit each other.
#            5.3.0, 5.12.1 and 5.16.1 were seen to do as 5.20.0.
# Why:       The LlamaTokenizer of those releases puts its own pre-tokenizer and decoder in the place of the file's.
# Source:    transformers issues 45488 and 46489: https://github.com/huggingface/transformers/issues/45488,
#            https://github.com/huggingface/transformers/issues/46489.
# Meets:     Two computers that tokenise for one run: the releases differ, all the files are equal, and so is every hash.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" HF_HUB_DISABLE_TELEMETRY=1

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/train.py" <<'PY'
"""Train a byte-level tokenizer of 320 tokens on three sentences and lay it down as a model's folder would have it."""
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

folder = Path(sys.argv[1])
folder.mkdir()
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
)
tokenizer.train_from_iterator(["rain fell on the hill", "the hill was wet", "wet rain fell on the road"] * 20, trainer)
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
)
PY

cat >"$work/probe.py" <<'PY'
"""Tokenise one sentence with AutoTokenizer and with the tokenizers library; exit 0 if they agree or not, as is expected."""
import sys

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

folder, agree = sys.argv[1], sys.argv[2] == "agree"
text = "the rain fell on the wet hill"
plain = Tokenizer.from_file(f"{folder}/tokenizer.json")
expected = plain.encode(text).ids
auto = AutoTokenizer.from_pretrained(folder)
ids = auto.encode(text, add_special_tokens=False)
back = auto.decode(ids)
print(f"Seen with transformers {transformers.__version__} ({type(auto).__name__}): {ids}, back to text: {back!r}")
assert plain.decode(expected) == text, "the file itself is no good tokenizer"
ok = (ids == expected and back == text) if agree else (ids != expected and back == text.replace(" ", ""))
if not ok:
    print("NO LONGER SO: this release does not tokenise as stated above.")
sys.exit(not ok)
PY

"$python" -m venv "$work/env"
install transformers==4.57.6 tokenizers==0.22.2
"$work/env/bin/python" "$work/train.py" "$work/model"
"$work/env/bin/python" "$work/probe.py" "$work/model" agree
install transformers==5.20.0 tokenizers==0.23.3
"$work/env/bin/python" "$work/probe.py" "$work/model" differ
install transformers==5.23.0 tokenizers==0.23.3
"$work/env/bin/python" "$work/probe.py" "$work/model" agree
echo "As stated."
