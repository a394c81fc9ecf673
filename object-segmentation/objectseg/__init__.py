"""Object segmentation: how well one mask per image fits the truth."""
