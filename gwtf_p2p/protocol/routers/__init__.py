"""Who gets a microbatch next: GWTF, SWARM, and simpler ones to compare them with, all behind `core.router.Router`.

A router sees a view and what became of its choices; it never sends, and never decides that a peer is lost. Start with
`factory.make_router` (every router by name, with its settings and its kind), then `gwtf` and `swarm`.
"""
