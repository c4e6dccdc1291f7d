"""Being reached, and reaching others: behind NAT, through a mapped port, a hole punch, or a circuit relay.

It finds out how this peer can be reached and keeps the best path to each other one; what goes over it is `rpc`'s. Start with
`reachability.Reachability` (this peer) and `paths.Paths` (the ways to others); `reachability_rules` holds the decisions, in
pure code.
"""
