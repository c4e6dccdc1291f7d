"""Why training stands still: one sentence for people, the same from every peer and every monitor.

`rules.stall_of` decides, from a `Situation` in plain data; `watch.StallWatch` makes one of what a peer sees, and says when
there is news.
"""
