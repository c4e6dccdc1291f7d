"""A scenario brought to life: its peers in a world, their churn, and SWARM's rebalancing.

All arms of a comparison get the same peers and the same crashes. Start with `build.build`; `churn` plans crashes and returns
from the seed alone.
"""
