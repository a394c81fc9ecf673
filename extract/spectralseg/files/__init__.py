"""Images, label maps and stage files: how they are read, and written whole or not at all."""
