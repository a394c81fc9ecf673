"""From eigenvectors to regions of the image."""

import math

from spectralseg.errors import InputError

STEPS = (8, 16, 14, 32, 4)  # pixels per cell to try, in this order


def infer_grid(height: int, width: int, cells: int) -> tuple[tuple[int, int], int]:
    """Grid and step of an eigenvector that does not tell them (files of the published code).

    Parameters
    ----------
    height, width
        Of the image, in pixels.
    cells
        T', the number of entries of the eigenvector.

    Returns
    -------
    grid, step
        (rows, columns), and pixels per cell: the first step s of 8, 16, 14, 32, 4 with (H // s) * (W // s) = T', else
        the first s for whose grid T' is k^2 times that count: a grid k times finer, with step s / k.

    Raises
    ------
    InputError
        No step fits.
    """
    for step in STEPS:
        rows, columns = height // step, width // step
        if rows * columns == cells:
            return (rows, columns), step
    for step in STEPS:
        rows, columns = height // step, width // step
        if rows * columns == 0:
            continue
        finer = math.isqrt(cells // (rows * columns))
        if finer > 1 and finer**2 * rows * columns == cells and step % finer == 0:
            return (finer * rows, finer * columns), step // finer
    raise InputError(
        f"{cells} patches fit no usual grid on an image of {width}x{height} pixels; the file must name its patch size "
        "(fields 'grid' and 'step')"
    )
