"""One module per verb that asks a running swarm for something: flags and `run`, as in `cli/verbs`."""
