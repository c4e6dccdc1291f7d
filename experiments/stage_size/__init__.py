"""What a peer of a stage pays for it that its stage has many peers."""
