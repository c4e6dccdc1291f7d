"""Coming, going and changing place: which stage a newcomer takes, how it gets its weights, when it serves, how it leaves.

It moves no bytes: downloads are effects. Start with `membership.Membership`; `rebalancing.choose_stage` and
`rebalancing.Mover` choose places, `swarm_rebalancing` is SWARM's own rule.
"""
