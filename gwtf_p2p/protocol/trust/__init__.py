"""Who may tell this peer what: nothing that a stranger sends is believed because it is well formed.

Start with `authorisation`, one table of who may send which kind of message; `acquaintance` says as what a sender is known,
`fitness` what a message must be like in this run at this peer. What becomes of who breaks the rules is `core/bars`.
"""
