"""Backbones, their weights, and the features that are read from them."""
