"""One scenario, several arms: the same peers, links, seeds and churn under each router, simulated or live, and the report."""
