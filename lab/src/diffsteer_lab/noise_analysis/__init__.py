"""What refiners change in noise, and which part of that carries the result."""
