"""GWTF's distributed planning: peers that know only their neighbours request, change and redirect flows by messages.

It needs ids and nothing else of the protocol, sends nothing itself, and draws from an RNG that is given. Start with
`negotiator.Negotiator`, one peer's part; `messages` is what peers say, `offers.Advert` what they publish.
"""
