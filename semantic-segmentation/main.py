"""Evaluation of semantic label maps; ``python main.py --help``."""

from semanticseg.evaluation import main

if __name__ == "__main__":
    main()
