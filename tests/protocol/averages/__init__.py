"""Who may send what, and what becomes of those that break the rules."""
