"""Verbs that look at a running swarm and print what they see: one module per verb, as in the folder above."""
