"""What is left out of an average: parts that were refused (`refused_parts`), losses that can be none (`losses`).

Rules on figures and names alone: `commit` asks them, and tells what they say.
"""
