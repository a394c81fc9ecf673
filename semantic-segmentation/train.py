"""Self-training on pseudo-labels; ``python train.py --help``."""

from semanticseg.self_training import main

if __name__ == "__main__":
    main()
