"""What a swarm sends that does nothing, live and in a simulation of the exchange of records."""
