#!/usr/bin/env bash
# With numpy 2.4, hivemind 1.1.12 still writes its two 8-bit codecs and can no longer read them.
#
# Versions:  hivemind 1.1.12 with numpy 2.3.5 and with numpy 2.4.6, torch 2.13.0.
# Behaviour: With numpy 2.4.6, a tensor compressed as UNIFORM_8BIT or QUANTILE_8BIT is written without complaint; reading it
#            raises TypeError. The bytes are good: hivemind with numpy 2.3.5 reads what was written with 2.4.6. NONE and
#            FLOAT16 are read with both. hivemind 1.1.12 asks for numpy>=1.17 only, so pip brings the two together.
# Why:       The reader takes the length of the codebook as int() of an array of one element. numpy deprecated that in 1.25 and
#            refuses it from 2.4 on.
# Source:    Release notes of numpy 2.4.0, "Raise TypeError on attempt to convert array with ndim > 0 to scalar":
#            https://numpy.org/doc/stable/release/2.4.0-notes.html. No thread about it was found in hivemind's tracker.
# Meets:     A swarm in which the sender and the receiver have different numpy: the sender sees no error, and the receiver is
#            the one that looks broken.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/probe.py" <<'PY'
"""`write FOLDER` compresses one tensor with four codecs; `read FOLDER` prints, for each, the largest error or the exception."""
import json
import sys
import warnings
from pathlib import Path

import numpy
import torch

warnings.simplefilter("ignore")
from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
from hivemind.proto import runtime_pb2

action, folder = sys.argv[1], Path(sys.argv[2])
tensor = torch.linspace(-2, 2, 4096)
results = {}
for name in ("NONE", "FLOAT16", "UNIFORM_8BIT", "QUANTILE_8BIT"):
    if action == "write":
        folder.mkdir(exist_ok=True)
        message = serialize_torch_tensor(tensor, runtime_pb2.CompressionType.Value(name))
        (folder / name).write_bytes(message.SerializeToString())
        results[name] = "written"
        continue
    message = runtime_pb2.Tensor.FromString((folder / name).read_bytes())
    try:
        error = (deserialize_torch_tensor(message) - tensor).abs().max().item()
        results[name] = "read" if error < 0.02 else f"read, wrong by {error:.3g}"
    except TypeError as refusal:
        results[name] = f"TypeError: {refusal}"
print(f"Seen with numpy {numpy.__version__}, {action}: {json.dumps(results)}")
expected = sys.argv[3] if action == "read" else "written"
bad = [n for n, r in results.items() if not r.startswith(expected if n.endswith("8BIT") or action == "write" else "read")]
if bad:
    print(f"NO LONGER SO: {', '.join(bad)}.")
sys.exit(bool(bad))
PY

"$python" -m venv "$work/env"
run() { "$work/env/bin/python" "$work/probe.py" "$@"; }
install hivemind==1.1.12 torch==2.13.0 numpy==2.4.6 scipy==1.17.1
run write "$work/with-2.4"
run read "$work/with-2.4" TypeError
install hivemind==1.1.12 torch==2.13.0 numpy==2.3.5 scipy==1.17.1
run read "$work/with-2.4" read
echo "As stated."
