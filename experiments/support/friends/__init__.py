"""The friends of `experiments.friends`: their machines, how their stories begin, and what becomes of them."""
