"""Where every script and console command begins: Ctrl-C during the imports, which take seconds, ends it in one line.

Nothing is done yet then, so the process ends at once. An exception would not do: C code turns it into others.
"""

import importlib
import os
import signal
import threading
from functools import partial


def enter(module: str) -> None:
    """Import a module and call its ``main``."""
    is_main = threading.current_thread() is threading.main_thread()  # not where Streamlit runs a script
    before = signal.getsignal(signal.SIGINT)
    if is_main and before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)
    try:
        main = importlib.import_module(module).main
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)
    main()


def _end(*_: object) -> None:
    os.write(2, b"\ninterrupted\n")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


reproduce = partial(enter, "spectralseg.commands.reproduce")
extract = partial(enter, "spectralseg.commands.cli")
object_localization = partial(enter, "objectloc.command")
object_localization_compare = partial(enter, "objectloc.compare")
object_segmentation = partial(enter, "objectseg.evaluation")
semantic_segmentation = partial(enter, "semanticseg.evaluation")
semantic_segmentation_train = partial(enter, "semanticseg.self_training")
eagle_train = partial(enter, "eagleseg.commands.train")
eagle_eval = partial(enter, "eagleseg.commands.evaluate")
eagle_demo = partial(enter, "eagleseg.commands.demo")
eagle_crop_datasets = partial(enter, "eagleseg.commands.crop")
eagle_download_datasets = partial(enter, "eagleseg.commands.download_datasets")
eagle_download_models = partial(enter, "eagleseg.commands.download_models")
eagle_convert_checkpoint = partial(enter, "eagleseg.commands.convert")
