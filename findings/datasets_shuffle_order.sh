#!/usr/bin/env bash
# One seed, three orders: what shuffle(seed=1) makes of a stream depends on the release of datasets.
#
# Versions:  datasets 4.8.5, 5.0.1 and 5.2.0, numpy 2.4.6, pyarrow 26.0.1.
# Behaviour: The same 60 examples through IterableDataset.shuffle(seed=1, buffer_size=16) come in one order from 4.8.5 and in
#            another from 5.2.0; if they lie in four shards, 5.0.1 has a third. No release warns. Dataset.shuffle(seed=1), the
#            one for data that is not streamed, gives the same order in all three.
# Why:       Inferred from what the pull requests below say that they change: how the buffer is filled from several shards, and
#            how it is shuffled. Either way other random numbers are drawn from the same generator.
# Source:    datasets pull requests 8194 and 8407:
#            https://github.com/huggingface/datasets/pull/8194, https://github.com/huggingface/datasets/pull/8407.
# Meets:     Whoever has two computers read "the same" stream by seed, or repeats last year's run. A seed names an order only
#            together with the release.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" HF_HUB_DISABLE_TELEMETRY=1

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/probe.py" <<'PY'
"""Write the three orders of this release to the file that is named, and print the beginning of each."""
import json
import sys

import datasets

datasets.disable_progress_bars()
data = datasets.Dataset.from_dict({"i": list(range(60))})


def stream(shards: int) -> list[int]:
    return [row["i"] for row in data.to_iterable_dataset(num_shards=shards).shuffle(seed=1, buffer_size=16)]


orders = {"one shard": stream(1), "four shards": stream(4), "not streamed": list(data.shuffle(seed=1)["i"])}
assert all(sorted(order) == list(range(60)) for order in orders.values()), "an order is no permutation of the data"
print(f"Seen with datasets {datasets.__version__}:")
for name, order in orders.items():
    print(f"    {name:12} {order[:12]} ...")
with open(sys.argv[1], "w") as out:
    json.dump(orders, out)
PY

cat >"$work/judge.py" <<'PY'
"""Exit 0 if the three releases agree and differ as stated."""
import json
import sys

first, second, third = (json.load(open(name)) for name in sys.argv[1:])
ok = (
    first["one shard"] == second["one shard"] != third["one shard"]
    and len({tuple(orders["four shards"]) for orders in (first, second, third)}) == 3
    and first["not streamed"] == second["not streamed"] == third["not streamed"]
)
print("As stated." if ok else "NO LONGER SO: the orders do not agree and differ as stated above.")
sys.exit(not ok)
PY

"$python" -m venv "$work/env"
install datasets==4.8.5 numpy==2.4.6 pyarrow==26.0.1
"$work/env/bin/python" "$work/probe.py" "$work/first"
install datasets==5.0.1 numpy==2.4.6 pyarrow==26.0.1
"$work/env/bin/python" "$work/probe.py" "$work/second"
install datasets==5.2.0 numpy==2.4.6 pyarrow==26.0.1
"$work/env/bin/python" "$work/probe.py" "$work/third"
"$python" "$work/judge.py" "$work/first" "$work/second" "$work/third"
