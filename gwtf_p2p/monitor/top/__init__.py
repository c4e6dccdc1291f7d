"""`gwtf top`: any run on the whole screen, with a keyboard.

`source` reads a swarm's records or a monitor's JSON API, `shown` is what is believed of an answer, `app` draws it (Textual).
"""
