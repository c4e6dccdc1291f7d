"""Figures of links, this machine's line and the run: measured, never guessed, and with their age.

It sends probes only where nothing else is under way, and plans on nothing. Start with `link_estimates.LinkProbes`, which all
transfers feed; `idle_probe` and `path_probe` fill the gaps, `bandwidth` measures against a bootstrap peer.
"""
