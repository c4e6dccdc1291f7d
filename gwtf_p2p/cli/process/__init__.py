"""The process that a verb runs in: how it ends, and how it is started again after a crash."""
