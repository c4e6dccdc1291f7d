"""A Hugging Face model cut into parts: the embedding, head and loss of a data peer, the layers of a stage.

Weights come from the run's seed alone, so every peer of a stage starts alike. Start with `split` (`PartSpec`,
`build_stage_part`, `build_data_part`); `families` says which models can be cut, and where.
"""
