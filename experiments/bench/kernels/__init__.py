"""Kernels that the project does not use, and what they would bring."""
