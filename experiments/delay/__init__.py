"""What delayed optimizer steps cost in loss."""
