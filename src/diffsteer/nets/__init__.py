"""Networks that no library has, one module a family."""
