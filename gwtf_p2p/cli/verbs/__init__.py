"""One module per verb: `add_parser` has its flags, `run` does it and returns the exit code.

No other room imports these; `main` finds them by name.
"""
