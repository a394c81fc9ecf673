"""EAGLE: unsupervised semantic segmentation trained on eigenvector cues (Kim et al., CVPR 2024)."""
