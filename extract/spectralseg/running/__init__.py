"""Command lines, stages over images, worker processes, devices, launchers."""
