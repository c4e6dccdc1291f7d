"""What an average is asked for with, what it gives, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.training.compute.values import Gradient


class AveragingFailed(Exception):
    """This attempt came to nothing. `peer` is the member that failed as far as this one can tell; `refused`: it is there, and
    what it has sent is not taken."""

    def __init__(self, peer: PeerId | None, reason: str, *, refused: bool = False) -> None:
        self.peer, self.reason, self.refused = peer, reason, refused
        super().__init__(f"{peer[-6:]}: {reason}" if peer else reason)


@dataclass(frozen=True, slots=True)
class AveragingGroup:
    """One attempt. All members must be given equal groups: the same order, weights and speeds.

    `group_id` names run, stage, iteration and attempt. A member of weight 0 contributes nothing and gets the result.
    `line_bytes_per_s` decides the shares; empty, or 0 for a member, means unknown (the mean of the others). Those `left_out`
    have no share: they sum up nothing. More than `all_with_all` average in rows (`protocol/averages/rows`), where shares are
    equal; 0: any number averages all with all. `of`: what is averaged, for sizes are compared with those of the same kind.
    """

    group_id: str
    members: tuple[PeerId, ...]
    weights: tuple[float, ...]
    line_bytes_per_s: tuple[float, ...] = ()
    left_out: tuple[PeerId, ...] = ()
    all_with_all: int = 0
    of: str = ""

    def __post_init__(self) -> None:
        if len(set(self.members)) != len(self.members) or not self.members:
            raise ValueError(f"members: expected different peers, got {self.members}")
        if len(self.weights) != len(self.members) or min(self.weights) < 0 or not 0 < sum(self.weights) < float("inf"):
            raise ValueError(f"weights: expected one per member, none negative, not all 0, got {self.weights}")
        if self.line_bytes_per_s and len(self.line_bytes_per_s) != len(self.members):
            raise ValueError("line_bytes_per_s: expected one per member, or none")
        if any(weight > 0 for member, weight in zip(self.members, self.weights, strict=True) if member in self.left_out):
            raise ValueError("left_out: expected members of weight 0")

    @property
    def fractions(self) -> tuple[float, ...]:
        """Each member's share of the summing."""
        known = [speed for speed in self.line_bytes_per_s if speed > 0]
        mean = sum(known) / len(known) if known else 1.0
        speeds = self.line_bytes_per_s or (0.0,) * len(self.members)
        out = set(self.left_out)
        shares = zip(self.members, speeds, strict=True)
        return tuple(0.0 if member in out else speed if speed > 0 else mean for member, speed in shares)

    @property
    def circle(self) -> Circle:
        """All members, each with its share."""
        return Circle(self.group_id, self.members, self.weights, self.fractions)


@dataclass(frozen=True, slots=True)
class Circle:
    """Members of which each sends every other one a piece of what it brings, in proportion to that one's share of the summing:
    those of a group, of one of its rows, or the owners of a lane. They know it by one name, in one order."""

    name: str
    members: tuple[PeerId, ...]
    weights: tuple[float, ...]
    fractions: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AverageResult:
    """`gradient`: fp32, names and shapes as given. `digest`: equal for all members that have equal bits.

    `residual` is what rounding has taken from this member, shaped like the gradient; None when the codec rounds nothing away
    that is to be made up for. It goes into this member's next average if this one is taken.
    """

    gradient: Gradient
    digest: str
    sent_bytes: int
    seconds: float
    residual: Gradient | None = None
