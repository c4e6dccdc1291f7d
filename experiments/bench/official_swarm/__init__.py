"""The official SWARM beside ours: CPU seconds of all processes for each microbatch."""
