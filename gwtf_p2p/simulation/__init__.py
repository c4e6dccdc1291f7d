"""Interpreter 1 of the protocol: virtual time. Imports the protocol and nothing else of the package."""
