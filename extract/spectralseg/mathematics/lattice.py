"""Sums of Gaussians over many points, by the permutohedral lattice, in torch operations on a CPU or a GPU.

Source: Adams, Baek, Davis, "Fast high-dimensional filtering using the permutohedral lattice", Eurographics 2010. The
details in which libraries differ are pydensecrf's.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from spectralseg.errors import InputError


class GaussianFilter:
    """Weighted means over points: ``D^-1/2 K D^-1/2`` with ``K_ij = exp(-|f_i - f_j|^2 / 2)``, ``D`` its row sums.

    ``K`` is approximated as ``slice . blur . splat``: values are spread to the vertices of the simplex around each
    point, blurred along each axis of the lattice, and read back with the same weights.

    Parameters
    ----------
    points
        (d, N) float32, ``f``: features, each divided by its standard deviation. ``d`` is 2 for positions, 5 with colours.

    Raises
    ------
    InputError
        Points that spread over too many standard deviations to number the vertices.
    """

    def __init__(self, points: Tensor) -> None:
        size = len(points) + 1  # axes of the lattice, and vertices of a simplex
        origin, rank, offsets = enclosing_simplex(points)
        keys, steps = vertex_keys(origin, rank)
        weights = barycentric(rank, offsets).T.contiguous()
        # One sort brings equal vertices together: it numbers them, and lists the points at each, which are the rows of
        # the sparse matrix that splats.
        keys, order = keys.T.reshape(-1).sort(stable=True)
        vertices, number, counts = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
        self._corners = torch.empty_like(order, dtype=torch.int32).scatter_(0, order, number.int()).view(-1, size)
        self._points = order.div(size, rounding_mode="floor").int()
        # The last vertex has no points: it is the zero that a missing neighbour stands for.
        self._starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
        self._neighbours = neighbours(vertices, steps)
        # section 3.2: convolve with (1/2, 1, 1/2) along an axis
        self._blur = weights.new_tensor([1, 0.5, 0.5]).repeat(len(vertices) + 1, 1)
        self._slice = weights / (1 + 2.0 ** (1 - size))  # what the blur adds to a constant
        self._splat = weights.view(-1).index_select(0, order)
        root = self(torch.ones_like(points[:1].T)).rsqrt()  # D^-1/2
        self._slice *= root
        self._splat *= root.view(-1).index_select(0, self._points)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter (N, C) float32 values; returns the same shape."""
        vertices = embedding_bag(self._points, values, self._starts, mode="sum", per_sample_weights=self._splat)
        for table in self._neighbours:
            vertices = embedding_bag(table, vertices, mode="sum", per_sample_weights=self._blur)
        return embedding_bag(self._corners, vertices, mode="sum", per_sample_weights=self._slice)


def enclosing_simplex(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each point (section 3.1).

    Parameters
    ----------
    points
        (d, N) float32.

    Returns
    -------
    origin, rank, offsets
        (d + 1, N) each: the simplex's vertex of remainder 0, divided by d + 1 (float32, whole numbers); the place of each
        coordinate of what leads from it to the point, 0 the largest (int64); and this difference (float32).
    """
    size = len(points) + 1
    # Which vertices there are hangs on the rounding of points at the faces of simplices: all as in pydensecrf.
    deviation = torch.tensor(math.sqrt(2 / 3) * size).item()  # of splat, blur and slice together (page 6)
    elevated = points.new_empty(size, points.shape[1])
    total = torch.zeros_like(points[0])
    for axis in range(size - 1, 0, -1):  # the columns of E (page 5)
        scaled = points[axis - 1] * (deviation / math.sqrt(axis * (axis + 1)))
        elevated[axis] = total - scaled * axis
        total += scaled
    elevated[0] = total
    origin = (elevated * (1 / size)).round_()
    offsets = elevated - origin * size
    # Places from all pairs: faster than to sort. Of equal ones the later coordinate comes first.
    rank = origin.sum(0).to(torch.int8).repeat(size, 1)
    for axis in range(size - 1):
        smaller = offsets[axis] < offsets[axis + 1 :]
        rank[axis] += smaller.sum(0, dtype=torch.int8)
        rank[axis + 1 :] += ~smaller
    # Where the rounded coordinates do not add up to 0, those with the largest error move by one unit (page 6).
    turn = (rank < 0).to(torch.int8) - (rank >= size).to(torch.int8)
    origin += turn
    return origin, rank.add_(turn, alpha=size).long(), elevated.sub_(origin, alpha=size)


def barycentric(rank: Tensor, offsets: Tensor) -> Tensor:
    """(d + 1, N) float32: the weight of the simplex's vertex of each remainder (proposition 4.2 of the paper)."""
    by_rank = torch.empty_like(offsets).scatter_(0, rank, offsets).div_(len(offsets))
    weights = by_rank.flip(0)
    weights[1:] -= by_rank.flip(0)[:-1]
    weights[0] += 1 - by_rank[0]
    return weights


def vertex_keys(origin: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices packed into one number each.

    A vertex ``v`` of d + 1 coordinates, whose sum is 0, is told by the whole numbers ``v_0`` and ``(v_i - v_0) / (d + 1)``
    with i from 1 to d - 1: digits of a number of mixed radix. So the way to the neighbour along an axis is the same
    difference of keys for every vertex.

    Parameters
    ----------
    origin, rank
        Of :func:`enclosing_simplex`.

    Returns
    -------
    keys, steps
        (d + 1, N): the vertex of each remainder; (d + 1,): what leads to the neighbour along each axis. int32 if that
        is enough, else int64.

    Raises
    ------
    InputError
        int64 is not enough.
    """
    size = len(origin)
    digits = torch.cat([origin[:1], origin[1:-1] - origin[0]])
    least, most = digits.aminmax(dim=1)
    # A simplex's other vertices and their neighbours are at most two units away; the first digit counts parts of units.
    spans = [int(span) + 5 for span in (most - least).tolist()]
    spans[0] *= size
    if math.prod(spans) > torch.iinfo(torch.int64).max:
        raise InputError("the CRF's deviations (alpha, beta, gamma) are too small for this image")
    dtype = torch.int32 if math.prod(spans) <= torch.iinfo(torch.int32).max else torch.int64
    first, *strides = [math.prod(spans[axis + 1 :]) for axis in range(size - 1)]
    key = (digits[0] - (least[0] - 2)).to(dtype) * (size * first)
    for digit, lowest, stride in zip(digits[1:], least[1:], strides, strict=True):
        key += (digit - (lowest - 2)).to(dtype) * stride
    # To a neighbour: -1 along all axes but one, and d along that (page 5). From a vertex to the one of the next
    # remainder: the way back from a neighbour.
    differences = [(size - 1) * first - sum(strides), *(stride - first for stride in strides), -first]
    steps = torch.tensor(differences, dtype=dtype, device=key.device)
    turns = torch.empty_like(rank, dtype=dtype).scatter_(0, rank, steps[:, None].expand_as(rank))
    keys = torch.empty_like(turns)
    keys[0] = key
    for remainder in range(1, size):
        torch.sub(keys[remainder - 1], turns[size - remainder], out=keys[remainder])
    return keys, steps


def neighbours(vertices: Tensor, steps: Tensor) -> list[Tensor]:
    """(M + 1, 3) int32 for each axis: numbers of M vertices (ascending keys) and of those before and after each.

    M where there is none.
    """
    count = len(vertices)
    tables = []
    for step in steps:
        wanted = vertices + step
        after = torch.searchsorted(vertices, wanted)
        found = (vertices[after.clamp(max=count - 1)] == wanted).nonzero()[:, 0]
        table = torch.full((count + 1, 3), count, dtype=torch.int32, device=vertices.device)
        table[:, 0] = torch.arange(count + 1)
        table[after[found], 1] = found.int()
        table[found, 2] = after[found].int()
        tables.append(table)
    return tables
