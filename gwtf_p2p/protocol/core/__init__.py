"""What every part of a peer's state machine shares: the microbatches that it holds, who is alive, how long things take.

It decides when a peer counts as lost and how long to wait, not what is done about it. Start with `lifecycle` (`Phase`, `Held`:
the life of a microbatch as a table) and `context.Context`, the state that the parts work on; `router.Router` is what a router
must offer, `failure_detector.Liveness` and `deadlines.Timings` measure the others.
"""
