"""Ways to steer a prediction."""
