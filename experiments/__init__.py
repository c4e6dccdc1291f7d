"""Measurements: benchmarks, parity control, scenarios. Imports the package, never the reverse."""
