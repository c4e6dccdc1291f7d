"""Text out of a model that lies on many peers: forwards from stage to stage for their result alone, and a token of each.

It knows who may be asked from a view, and decides nothing of training. Start with `through_stages`, then `sampling`.
"""
