"""Read-only observers of a run: terminal view, event log."""
