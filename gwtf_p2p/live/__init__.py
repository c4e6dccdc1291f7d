"""Interpreter 2 of the protocol: asyncio and hivemind. The only folder that imports hivemind."""
