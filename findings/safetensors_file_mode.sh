#!/usr/bin/env bash
# A file that safetensors 0.8.0 writes is its writer's alone, whatever the umask.
#
# Versions:  safetensors 0.7.0 and 0.8.0, numpy 2.4.6.
# Behaviour: Under umask 022, save_file() of 0.7.0 makes a file of mode 0644, as open() does; the one of 0.8.0 has mode 0600.
#            Saving over a file of mode 0664 leaves 0664 with 0.7.0 and 0600 with 0.8.0. Saving to a symbolic link wrote into
#            the link's target; 0.8.0 puts a new file in the link's place, and the target keeps what it had.
# Why:       0.8.0 writes a temporary file, which is private by design, and renames it over the destination.
# Source:    safetensors issue 782 (the mode; open when this was written) and pull request 764 (the temporary file):
#            https://github.com/safetensors/safetensors/issues/782, https://github.com/safetensors/safetensors/pull/764.
#            The replaced link is told in neither; it was seen here.
# Meets:     A checkpoint folder that another account serves or reads, and a "latest" link that is saved through.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/probe.py" <<'PY'
"""Save one small array to a new file, over a file and through a link; print what is then on the disk, as JSON."""
import json
import os
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

os.umask(0o022)
folder = Path(sys.argv[1])
folder.mkdir()
zeros, ones = {"w": np.zeros(4, np.float32)}, {"w": np.ones(4, np.float32)}
new, old, target, link = (folder / name for name in ("new", "old", "target", "link"))
save_file(zeros, new)
save_file(zeros, old)
old.chmod(0o664)
save_file(ones, old)
save_file(zeros, target)
link.symlink_to(target)
save_file(ones, link)
print(json.dumps({
    "new file": oct(new.stat().st_mode & 0o777),
    "over a file of mode 0o664": oct(old.stat().st_mode & 0o777),
    "link is still a link": link.is_symlink(),
    "target got the new values": bool((load_file(target)["w"] == 1).all()),
}))
PY

"$python" -m venv "$work/env"
install safetensors==0.7.0 numpy==2.4.6
before="$("$work/env/bin/python" "$work/probe.py" "$work/before")"
install safetensors==0.8.0 numpy==2.4.6
after="$("$work/env/bin/python" "$work/probe.py" "$work/after")"

echo "Seen with safetensors 0.7.0: $before"
echo "Seen with safetensors 0.8.0: $after"

names='"new file": "%s", "over a file of mode 0o664": "%s", "link is still a link": %s, "target got the new values": %s'
# shellcheck disable=SC2059
[[ "$before" == "{$(printf "$names" 0o644 0o664 true true)}" && "$after" == "{$(printf "$names" 0o600 0o600 false false)}" ]] || {
    echo "NO LONGER SO: the modes or the link are not as stated above." >&2
    exit 1
}
echo "As stated."
