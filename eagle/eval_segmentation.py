"""Evaluate trained models; ``python eval_segmentation.py --help``."""

from eagleseg.commands.evaluate import main

if __name__ == "__main__":
    main()
