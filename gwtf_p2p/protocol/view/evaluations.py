"""What a run makes of its evaluations: the version with the lowest loss, and whether to go on.

Whoever leads adds the newest evaluation when it closes the iteration that began with the weights which were evaluated, and what
comes of it is part of the terms that every participant signs and takes over with the commit: all peers know the same, and end
alike, after the iteration in which the last evaluation that was waited for has brought nothing better.

- Only a lower loss is better; an equal one, and one that is not finite, is not. Weights without a finite loss are never the
  best.
- An evaluation that fails is none: it is neither waited for nor counted.
- When the swarm goes back to an earlier version, what later weights have lost is forgotten, and waiting begins anew.
- A checkpoint holds what was known when its weights were made; whoever starts from it goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gwtf_p2p.protocol.limits import MOST_ITERATIONS
from gwtf_p2p.protocol.wire.commit_messages import Evaluated, Evaluations


def with_newest(known: Evaluations | None, news: Evaluated) -> Evaluations:
    """What is known with one evaluation more; a version counts once."""
    if known is None:
        return _best(news) if news.loss is not None else Evaluations(news, waited=1)
    if news.version <= known.newest.version:
        return known
    if news.loss is not None and (known.best_version < 0 or news.loss < known.best_loss):
        return _best(news)
    return Evaluations(news, known.best_version, known.best_loss, known.waited + 1)


def with_reported(known: Evaluations | None, iteration: int, reported: Iterable[Evaluated | None]) -> Evaluations | None:
    """What is known once this iteration is closed, by what its data peers have reported; of several the first counts."""
    news = next((each for each in reported if each is not None and each.version == iteration), None)
    return with_newest(known, news) if news is not None else known


def up_to(known: Evaluations | None, version: int) -> Evaluations | None:
    """What is left of it when the swarm has gone back to this version."""
    if known is None or known.newest.version < version:
        return known
    if not 0 <= known.best_version < version:
        return None
    return _best(Evaluated(known.best_version, known.best_loss))


def ends(known: Evaluations | None, patience: int) -> bool:
    """So many evaluations have brought nothing better; a patience of 0 has no end."""
    return known is not None and 0 < patience <= known.waited


def why(known: Evaluations) -> str:
    """Why a run ends with these."""
    if known.best_version < 0:
        return f"{known.waited} evaluations in a row had no finite loss"
    after = "1 iteration" if known.best_version == 1 else f"{known.best_version} iterations"
    return f"{known.waited} evaluations in a row were not better than the one after {after} (loss {known.best_loss:.4f})"


REPORT = "evaluations"
"""Names the report of a machine whenever there is one more."""

_BEST_AFTER, _BEST_LOSS, _WAITED = "best_iteration", "best_loss", "evaluations_waited"


def figures(known: Evaluations | None) -> dict[str, float]:
    """What a record's `progress` tells of them."""
    if known is None:
        return {}
    best = {_BEST_AFTER: float(known.best_version), _BEST_LOSS: round(known.best_loss, 6)}
    return {**(best if known.best_version >= 0 else {}), _WAITED: float(known.waited)}


def from_figures(progress: Mapping[str, float]) -> Evaluations | None:
    """What is to be read of them there, `newest` aside; None where nothing is told."""
    if _WAITED not in progress:
        return None
    version = min(max(int(progress.get(_BEST_AFTER, -1.0)), -1), MOST_ITERATIONS)
    loss, waited = progress.get(_BEST_LOSS, 0.0), min(max(int(progress[_WAITED]), 0), MOST_ITERATIONS)
    return Evaluations(Evaluated(max(version, 0), None), version, loss, waited)


def so_far(known: Evaluations, patience: int) -> str:
    """How the evaluations go, in words."""
    if known.best_version < 0:
        text = "no evaluation has had a finite loss yet"
    else:
        after = "1 iteration" if known.best_version == 1 else f"{known.best_version} iterations"
        text = f"the lowest evaluation loss is {known.best_loss:.4f}, after {after}"
    if not patience:
        return text
    left = patience - known.waited
    return f"{text}; {left} more without a lower one {'ends' if left == 1 else 'end'} the run" if left > 0 else text


def _best(of: Evaluated) -> Evaluations:
    assert of.loss is not None
    return Evaluations(of, of.version, of.loss)
