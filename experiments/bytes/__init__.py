"""What travels, in which format, and what is left of exactness and loss with it."""
