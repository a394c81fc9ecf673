"""What two trainings share: the order of batches, how they are read, logs."""
