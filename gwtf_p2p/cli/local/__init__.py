"""Verbs that talk to peers of this machine, without a network: `gwtf pause` and `gwtf resume`."""
