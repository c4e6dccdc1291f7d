"""The command line: one file per verb of `gwtf`, thin."""
