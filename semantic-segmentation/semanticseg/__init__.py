"""Semantic segmentation: evaluation of label maps, and self-training."""
