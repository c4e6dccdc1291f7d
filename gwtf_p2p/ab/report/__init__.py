"""Results made readable: tables, plots and statistics in one document.

It computes from the lines of `runs.jsonl` and runs nothing. Start with `report.write_report`.
"""
