"""Every decision of the swarm, in pure code: no I/O, no clock, no global RNG; time and RNG are arguments."""
