"""Files of trained models, ours and the published ones."""
