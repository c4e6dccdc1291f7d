"""The user's own command, run when training stands still: by a peer for its run, by a monitor for all that it watches."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Mapping

logger = logging.getLogger(__name__)


def run_alert(command: str, about: Mapping[str, str]) -> threading.Thread:
    """Run it in a shell of its own, which nothing here waits for; the thread that is returned ends with it.

    What has happened is in its variables `GWTF_ALERT_...` and never in its words, for strangers have said some of it. That it
    could not be started, or failed, is logged.
    """
    environment = {**os.environ, **{f"GWTF_ALERT_{name}": value for name, value in about.items()}}

    def call() -> None:
        try:
            failed = subprocess.Popen(command, shell=True, env=environment, start_new_session=True).wait()
        except (OSError, ValueError) as error:  # ValueError: what no variable can hold
            logger.warning("--on_alert: %r", error)
            return
        if failed:
            logger.warning("--on_alert: the command ended with %d", failed)

    thread = threading.Thread(target=call, name="alert", daemon=True)
    thread.start()
    return thread
