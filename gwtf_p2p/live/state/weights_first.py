"""A state whose weights are put to use as soon as they are here, before what the optimizer keeps with them has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.state.transfer import StateDownload
from gwtf_p2p.protocol.ids import PeerId


async def fetch_weights_first(
    download: StateDownload, what: tuple[int, Sequence[PeerId]], compute: Compute, weights_are_here: Callable[[], object]
) -> None:
    """`what`: the version and its donors. When this returns all of the state is in place; `weights_are_here` has been called
    before that, unless all came at once. Raises StateUnavailable, RemoteProtocolError."""
    version, donors = what
    has_weights = False

    async def take(weights: Mapping[str, Tensor]) -> None:
        nonlocal has_weights
        await compute.load(weights, only="weights")
        has_weights = True
        weights_are_here()

    state = await download.fetch(version, donors, on_weights=take)
    await compute.load(state, only="moments" if has_weights else "")
