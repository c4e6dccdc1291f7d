"""How records get about without the DHT: with whom a peer exchanges them, when, and what either tells the other.

It makes no call and checks no signature, and judges nobody by a record. Start with `exchange` (`Exchange`), then `table`;
`alive` is how a peer says in 34 bytes that its record still holds.
"""
