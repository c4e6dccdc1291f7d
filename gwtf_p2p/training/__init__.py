"""torch and transformers without a network: what one peer computes."""
