"""What simulating and planning cost as a swarm grows. Start with `__main__`; `scenario` makes its files."""
