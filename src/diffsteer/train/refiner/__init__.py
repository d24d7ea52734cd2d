"""Training a noise refiner."""
