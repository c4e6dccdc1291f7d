"""Streams of our own between peers that reach each other directly: TLS 1.3 over TCP, beside p2pd and for payloads alone.

A peer asks another over p2pd (which has authenticated both) where it listens, and shows its certificate; the answer is an
invitation: a port, a ticket, and the other's certificate. Whoever connects shows the ticket before TLS begins, and each end
takes only the certificate that it knows. Where any of it fails the payload goes over p2pd, at once. Start with
`direct.DirectStreams`.
"""
