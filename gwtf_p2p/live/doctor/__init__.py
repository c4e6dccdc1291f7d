"""`gwtf doctor`: can this machine take part, and if not, why?

It examines and concludes; it changes nothing and joins no run. Start with `rules.diagnose`, pure code from findings to advice;
`machine` and `network` find, `report` and `network_lines` word it.
"""
