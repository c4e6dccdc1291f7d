#!/usr/bin/env bash
# A shuffled stream that is resumed from its state_dict() loses examples, and gives others a second time.
#
# Versions:  datasets 5.2.0, numpy 2.4.6, pyarrow 26.0.1.
# Behaviour: Without shuffle(), a stream that stops after any number of examples and goes on from its state_dict() gives each
#            example once. With shuffle(buffer_size=100), a stop after 100 examples or more costs about 60 that never come, and
#            about 10 that had been given come again. One warning speaks of a buffer that is filled anew; none speaks of
#            repetition.
# Why:       The state holds the position of the source, not the buffer; and the stage that cuts the stream into rows again
#            goes back to an earlier position and skips as many rows as it had given, which are now other rows.
# Source:    datasets pull request 8408 (open when this was written) describes both; issue 7901 has a report:
#            https://github.com/huggingface/datasets/pull/8408, https://github.com/huggingface/datasets/issues/7901.
# Meets:     A computer that feeds a training run and is restarted from its checkpoint.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" HF_HUB_DISABLE_TELEMETRY=1

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/probe.py" <<'PY'
"""Stop a stream of 600 examples at eight places, go on from the state, and count what was lost and what came twice."""
import sys

import datasets

datasets.disable_progress_bars()
datasets.logging.set_verbosity_error()  # the one warning is told in the words above
SIZE, STOPS = 600, range(100, 500, 50)
data = datasets.Dataset.from_dict({"i": list(range(SIZE))})


def stream(shuffled: bool) -> datasets.IterableDataset:
    plain = data.to_iterable_dataset(num_shards=4)
    return plain.shuffle(seed=1, buffer_size=100) if shuffled else plain


def lost_and_repeated(shuffled: bool, stop: int) -> tuple[int, int]:
    before = stream(shuffled)
    rows = iter(before)
    given = [next(rows)["i"] for _ in range(stop)]
    after = stream(shuffled)
    after.load_state_dict(before.state_dict())
    given += [row["i"] for row in after]
    return SIZE - len(set(given)), len(given) - len(set(given))


print(f"Seen with datasets {datasets.__version__}, {SIZE} examples:")
found = {shuffled: [lost_and_repeated(shuffled, stop) for stop in STOPS] for shuffled in (False, True)}
for shuffled, counts in found.items():
    print("    shuffled" if shuffled else "    in order")
    for stop, (lost, repeated) in zip(STOPS, counts):
        print(f"        stopped after {stop:3}: {lost:3} lost, {repeated:3} twice")
exact = all(count == (0, 0) for count in found[False])
ok = exact and all(lost > 0 and repeated > 0 for lost, repeated in found[True])
print("As stated." if ok else "NO LONGER SO: the counts are not as stated above.")
sys.exit(not ok)
PY

"$python" -m venv "$work/env"
install datasets==5.2.0 numpy==2.4.6 pyarrow==26.0.1
"$work/env/bin/python" "$work/probe.py"
