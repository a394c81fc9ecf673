"""Object localization: one box per image, and CorLoc."""
