"""Object localization: one box per image, and CorLoc; ``python main.py --help``."""

from objectloc.command import main

if __name__ == "__main__":
    main()
