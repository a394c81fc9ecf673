"""One module per command of ``extract.py``: files in, files out. The mathematics is in the modules above."""
