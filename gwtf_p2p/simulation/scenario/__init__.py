"""Scenarios: TOML files that say which peers, links, model and churn, and the peers drawn from a seed.

A wrong field is an InputError that names it. Start with `scenario.load_scenario`; `draw.draw_peers` makes peers of it, the
same for every router.
"""
