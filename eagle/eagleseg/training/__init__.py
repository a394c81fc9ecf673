"""The run: settings, batches, loop, validation, checkpoints."""
