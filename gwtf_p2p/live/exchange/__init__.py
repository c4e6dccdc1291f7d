"""Carries out what `protocol/exchange` decides: asks other peers what has changed, answers them, signs and checks statements.

It decides nothing about whom to ask or when, and makes no view. Start with `exchanging` (`RecordExchange`).
"""
