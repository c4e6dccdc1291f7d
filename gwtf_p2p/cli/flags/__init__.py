"""Flags of the command line: what they take, where else they may stand, and by which of them a field of a run is said.

`takes` judges single values while the line is parsed, `config_file` reads `-c FILE`, `names` says of a flag what is wrong with
the field of a run that it sets.
"""
