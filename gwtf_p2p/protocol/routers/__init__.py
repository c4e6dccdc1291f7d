"""The routers: one small interface, one file per algorithm."""
