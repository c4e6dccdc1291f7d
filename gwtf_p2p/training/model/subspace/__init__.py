"""Boundaries in a subspace: the model is parametrised so that a boundary is a few coefficients per token (arXiv 2506.01260).

One fixed orthonormal basis U (width d x k) is drawn from the run's seed. Whatever a decoder layer adds to the residual stream
lies in span(U), because each weight that writes to it is a product: a trained Z of k rows times U. The token embedding is a
table drawn from the seed, which is never trained and which every peer has, plus a trained part in span(U). So a boundary tensor
minus the table's rows of its tokens is U times k coefficients per token, and so is all of its gradient that any weight before
it needs: nothing is rounded away that this model has. It is another model than the one with all weights free: with fewer of
them, and what reaches the head beside the table's rows has k dimensions. Norm and head are free.

`writers` finds out by structure and verifies in numbers which weights those are, `parametrised` puts products in their place,
`check` compares the split model with the unsplit one before a run is published.
"""
