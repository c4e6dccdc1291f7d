"""How fast a scenario could be at best, whatever the router: a lower bound of the iteration, as a linear program.

It runs nothing. Start with `bound.bound_of`; `resources` and `path_times` are its two kinds of limits.
"""
