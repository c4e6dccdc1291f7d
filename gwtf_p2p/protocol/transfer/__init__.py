"""Getting activations forward and gradients back, once each, whoever dies in between.

It decides what is sent, offered again, redone or given up; who comes next is the router's choice, and bytes move elsewhere.
Start with `send_activation.SendActivation` and `return_gradient.ReturnGradient`; `repair.Repairs` redoes what a lost peer
held, `ledger.Ledger` knows which microbatches have which gradient where.
"""
