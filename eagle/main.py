"""Evaluate trained models: the same as eval_segmentation.py."""

from eagleseg.commands.evaluate import main

if __name__ == "__main__":
    main()
