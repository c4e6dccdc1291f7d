"""How tensors become bytes on the wire and tensors again: one codec for each direction of a run's boundaries, one for averages.

A codec is pure and deterministic; it knows nothing of transport, peers or plans. Start with `codec` for the interface and the
plain types, `blockwise` for int8 and fp8, `hadamard` for int4; other rooms look codecs up by name in `table`.
"""
