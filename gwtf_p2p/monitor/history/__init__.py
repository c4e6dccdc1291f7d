"""Keeps on disk what a monitor has seen of its runs, so that a fresh monitor shows what an earlier one on this disk saw.

It stores iterations, events and what each peer was credited with; it reads no record and decides nothing. Start at `store`.
"""
