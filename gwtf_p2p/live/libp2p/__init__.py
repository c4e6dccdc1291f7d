"""One p2pd per peer: its start and end, its identity, multiaddrs, and the commands that hivemind has no method for.

It opens connections and streams and says why that failed; it knows nothing of runs, stages or records. Start with
`daemon.start_daemon` and `options.P2POptions`. `identity`, `maddrs` and `options` import no hivemind, so that the command line
can answer at once.
"""
