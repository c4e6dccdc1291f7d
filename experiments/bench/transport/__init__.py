"""What the two ways between peers cost."""
