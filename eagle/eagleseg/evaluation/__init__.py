"""Probabilities, scores and pictures of a trained model."""
