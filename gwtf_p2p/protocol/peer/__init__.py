"""A whole peer: the state machine that the simulator and the live swarm run.

It dispatches events to the other rooms and adds what only a whole peer can know (its accounts, its record, the end of an
iteration). Start with `base`, then `stage_peer.StagePeer` and `data_peer.DataPeer`; `own_record.stage_record` says what a peer
publishes of itself.
"""
