"""Spectral unsupervised localization and segmentation: the library behind the command-line scripts."""

__version__ = "0.1.0"
