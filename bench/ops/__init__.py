"""Tensor maths used everywhere: distances, projections, losses, randomness, each written once."""
