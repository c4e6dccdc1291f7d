"""What an event log says, and running it through a machine once more: the same settings and events give the same effects.

`log` writes and reads lines (`live/peer/event_log` keeps the file), `replay` composes the machine and compares. No files here.
"""
