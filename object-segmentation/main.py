"""Evaluation of one binary mask per image; ``python main.py --help``."""

from objectseg.evaluation import main

if __name__ == "__main__":
    main()
