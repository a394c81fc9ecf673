"""What all trainings share: the folder of a run, the order of batches, how they are read, logs."""
