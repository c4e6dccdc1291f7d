"""GWTF's distributed planning: peers that know only their neighbours request, change and redirect flows by messages.

It needs its messages (`wire/negotiation_messages`) and nothing above it, sends nothing itself, and draws from an RNG that is
given. Start with `negotiator.Negotiator`, one peer's part; `offers.Advert` is what peers publish.
"""
