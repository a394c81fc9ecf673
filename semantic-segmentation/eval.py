"""The evaluation under its published name: the same as main.py."""

from semanticseg.evaluation import main

if __name__ == "__main__":
    main()
