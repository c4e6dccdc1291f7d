"""Finding each other: records in hivemind's DHT, checked before they are believed; peers known from before; the clock.

It publishes and reads what it is given and judges no peer by it. Start with `dht` (`start_dht`, `Dht`, and `Records`, what a
peer needs of it); `dht_validation` holds the rules by which every peer stores a record or not.
"""
