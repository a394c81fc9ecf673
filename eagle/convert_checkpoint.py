"""Make a published checkpoint a plain file; ``python convert_checkpoint.py --help``."""

from eagleseg.commands.convert import main

if __name__ == "__main__":
    main()
