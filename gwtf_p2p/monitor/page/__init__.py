"""The page that `gwtf monitor --port` serves, its JSON API and its metrics: what an observer has seen, for people and programs.

`watched_runs` takes every look and makes a document of it, `feed` tells browsers what has changed in it, `app` answers requests
from what is there already: a request never reaches the swarm. Start at `server.PageServer`.
"""
