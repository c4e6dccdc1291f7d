#!/usr/bin/env bash
# A model that transformers 5 saved is another model when transformers 4 loads it: its rotary base falls back to 10000.
#
# Versions:  transformers 4.57.6 and 5.23.0, torch 2.13.0, numpy 2.4.6.
# Behaviour: 5.23.0 writes the base of the rotary position embedding under "rope_parameters" in config.json, and no
#            "rope_theta". 4.57.6 keeps that entry as an attribute that nothing reads and takes its default, 10000: the same
#            weights give other outputs, without a warning. The other way it is well: 4.57.6 writes a top-level "rope_theta",
#            which both releases read.
# Source:    transformers pull request 39847 (the new form); vLLM's pull request 44158 tells the same trap:
#            https://github.com/huggingface/transformers/pull/39847, https://github.com/vllm-project/vllm/pull/44158.
# Meets:     A run whose members hold layers of one model under different releases: each layer answers, none is wrong alone,
#            and the model is neither of the two. A config.json that should work with both carries "rope_theta" as well.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_PROGRESS_BARS=1

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/probe.py" <<'PY'
"""`save FOLDER FORM` makes a small Llama with a rotary base of 500000 and saves it; `load FOLDER OUT` runs it on 64 tokens."""
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

transformers.utils.logging.disable_progress_bar()
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.5,
}
action, folder, last = sys.argv[1:]
if action == "save":
    torch.manual_seed(0)
    base = {"rope_theta": 500000.0}
    rope = base if last == "top level" else {"rope_parameters": {"rope_type": "default", **base}}
    LlamaForCausalLM(LlamaConfig(**SIZES, **rope)).save_pretrained(folder)
    written = json.loads((Path(folder) / "config.json").read_text())
    kept = {name: value for name, value in written.items() if "rope" in name}
    print(f"Seen: transformers {transformers.__version__} writes {json.dumps(kept)}")
else:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.arange(64)[None]).logits
    slowest = model.model.rotary_emb.inv_freq[-1].item()
    print(f"Seen: transformers {transformers.__version__} reads a slowest rotary frequency of {slowest:.3g}")
    torch.save((slowest, logits), last)
PY

cat >"$work/judge.py" <<'PY'
"""Compare what two releases made of one folder: exit 0 if they agree (or not), as is expected."""
import sys

import torch

one, other, agree = sys.argv[1], sys.argv[2], sys.argv[3] == "agree"
(slow_a, out_a), (slow_b, out_b) = torch.load(one), torch.load(other)
ratio, far = slow_a / slow_b, (out_a - out_b).abs().max().item()
print(f"Seen: frequencies in a ratio of {ratio:.4g}, largest difference of a logit {far:.2g} (they reach {out_a.abs().max():.2g})")
ok = (abs(ratio - 1) < 1e-6 and far < 1e-3) if agree else (ratio > 2 and far > 1e-1)
if not ok:
    print("NO LONGER SO: the two releases do not agree and differ as stated above.")
sys.exit(not ok)
PY

"$python" -m venv "$work/env"
run() { "$work/env/bin/python" "$@"; }
install transformers==5.23.0 torch==2.13.0 numpy==2.4.6
run "$work/probe.py" save "$work/new" "rope_parameters"
run "$work/probe.py" load "$work/new" "$work/new-by-5"
install transformers==4.57.6 torch==2.13.0 numpy==2.4.6
run "$work/probe.py" load "$work/new" "$work/new-by-4"
run "$work/judge.py" "$work/new-by-4" "$work/new-by-5" differ
run "$work/probe.py" save "$work/old" "top level"
run "$work/probe.py" load "$work/old" "$work/old-by-4"
install transformers==5.23.0 torch==2.13.0 numpy==2.4.6
run "$work/probe.py" load "$work/old" "$work/old-by-5"
run "$work/judge.py" "$work/old-by-4" "$work/old-by-5" agree
echo "As stated."
