"""Training: images with captions, in an order that can be resumed."""
