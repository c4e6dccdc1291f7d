"""The end of an iteration: all peers agree on the gradients that count, average them, and step, or none does.

It is a two-phase commit whose coordinator may die and be replaced (ballots, as in Paxos); averaging itself is an effect. Start
with `participant.Participant`, every peer's side, and `coordinator.Coordinator`; `roster` says who votes, `admission` who may
come in.
"""
