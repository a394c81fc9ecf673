"""The frozen features, the head that is trained on them, and the probes."""
