"""Data sets: where images and labels lie, and how the network sees them."""
