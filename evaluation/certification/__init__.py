"""Certified radii of randomized smoothing."""
