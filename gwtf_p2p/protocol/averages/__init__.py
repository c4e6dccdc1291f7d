"""Who averages with whom (`rows`), and what is left out of it: parts that were refused (`refused_parts`), losses that can be
none (`losses`).

Rules on figures and names alone: `commit` asks them, and tells what they say; the interpreters average by `rows`.
"""
