"""One scenario, several arms: the same peers, links, seeds and churn under each router, simulated or live, and the report.

Start with `trials/schedule` (what is run, in which order), then `trials/simulated` and `live/run`, which run one, and
`report/`. Rooms, low to high: trials < live, report.
"""
