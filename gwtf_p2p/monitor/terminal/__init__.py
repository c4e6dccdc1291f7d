"""Views for terminals: of a run on this machine, of one's own peer, of any swarm; and `gwtf top`, which takes the whole screen.

They are pure but for `top`: a state, a clock and a size in, lines out. What does not fit gives way by importance (`fit`).
"""
