"""Rendered creatures of known attributes: captions, images, and a judge of both."""
