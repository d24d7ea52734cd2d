"""Models that ship, their data, and the studies on them."""
