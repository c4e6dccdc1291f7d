"""Weights and optimizer of a part as named tensors: hashed, written, read, and assembled into a model that transformers loads.

It moves nothing between peers. Start with `checkpoint` and `tensors`; `epochs` remembers which history a checkpoint belongs
to, `export.export_hf` assembles.
"""
