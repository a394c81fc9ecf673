"""Affinities, eigenvectors, regions, clusters, matching, CRF and mattes: pure functions on tensors and arrays."""
