"""The command line: one file per verb of `gwtf`, thin.

Verbs parse, call, and print; whatever they say to a user is worded here and nothing is decided. Start with `main.main`. A
verb's module imports heavy libraries inside its functions: `--help` and wrong flags are answered at once.
"""
