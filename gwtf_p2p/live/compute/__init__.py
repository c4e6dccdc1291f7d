"""The device of one peer, in a thread of its own: forwards, backwards, steps; the tensors kept for them; the average.

It computes what it is told, in the order it is told. Start with `compute.Compute`; `works` says what each kind of work is,
`boundary` how its tensors travel; `tensor_store` bounds the memory and spills, `all_reduce.Averager` averages a stage's
gradients, bit for bit the same for all.
"""
