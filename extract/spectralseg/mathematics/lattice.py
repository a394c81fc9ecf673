"""Sums of Gaussians over many points, by the permutohedral lattice, in torch operations on a CPU or a GPU.

Source: Adams, Baek, Davis, "Fast high-dimensional filtering using the permutohedral lattice", Eurographics 2010. The
details in which libraries differ are pydensecrf's.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from spectralseg.errors import InputError

CHUNK = 2**16  # points at a time on a CPU: few enough for its cache


class GaussianFilter:
    """Weighted means over points: ``D^-1/2 K D^-1/2`` with ``K_ij = exp(-|f_i - f_j|^2 / 2)``, ``D`` its row sums.

    ``K`` is approximated as ``slice . blur . splat``: values are spread to the vertices of the simplex around each
    point, blurred along each axis of the lattice, and read back with the same weights. All three are products with
    sparse matrices, whose rows are lists of indices. Points are taken in chunks: what each adds to its own vertices is
    added up, then all chunks' shares of each vertex.

    Parameters
    ----------
    points
        (d, N) float32, ``f``: features, each divided by its standard deviation; ``d`` is 2 for positions, 5 with
        colours.
    images
        The points are those of so many images of one size, one after the other: points of two images are far apart.

    Raises
    ------
    InputError
        Points that spread over too many standard deviations to number the vertices.
    """

    def __init__(self, points: Tensor, images: int = 1) -> None:
        size = len(points) + 1  # axes of the lattice, and vertices of a simplex
        packed = VertexKeys(points, images)
        parts: list[tuple[Tensor, ...]] = []
        known = 0
        chunk = CHUNK if points.device.type == "cpu" else points.shape[1]
        for start in range(0, points.shape[1], chunk):
            origin, rank, offsets = enclosing_simplex(points[:, start : start + chunk])
            weights = barycentric(rank, offsets).T.reshape(-1)
            keys, number, order, counts = group(packed(origin, rank, start).T.reshape(-1))
            rows = order.div(size, rounding_mode="floor") + start
            parts.append((keys, number + known, counts, rows, weights.index_select(0, order), weights))
            known += len(keys)
        keys, corners, counts, self._points, self._splat, weights = map(torch.cat, zip(*parts, strict=True))
        self._starts = starts(counts)
        vertices, number, self._shares, counts = group(keys)
        self._share_starts = starts(counts) if len(parts) > 1 else None  # of one chunk each vertex has one share
        self._corners = number.index_select(0, corners).view(-1, size)
        self._neighbours = neighbours(vertices, packed.steps)
        # along an axis: a vertex, and half of those before and after it
        self._blur = weights.new_tensor([1, 0.5, 0.5]).repeat(len(vertices) + 1, 1)
        self._slice = weights.view(-1, size).div_(1 + 2.0 ** (1 - size))  # what the blur adds to a constant
        root = self(torch.ones_like(points[:1].T)).rsqrt()  # D^-1/2
        self._slice *= root
        self._splat *= root.view(-1).index_select(0, self._points)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter (N, C) float32 values; returns the same shape."""
        vertices = weighted_sums(values, self._points, self._splat, self._starts)
        if self._share_starts is not None:
            vertices = embedding_bag(self._shares, vertices, self._share_starts, mode="sum")
        for table in self._neighbours:
            vertices = weighted_sums(vertices, table, self._blur)
        return weighted_sums(vertices, self._corners, self._slice)


def weighted_sums(values: Tensor, index: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """Sums of rows of ``values`` (V, C): (R, C).

    ``index`` and ``weights`` are (R, k), or with ``starts`` (R + 1,) (K,), row r from ``starts[r]`` on; the last is
    empty then. The sums are added up in the same order in every run.
    """
    if values.device.type == "cpu":
        return embedding_bag(index, values, starts, mode="sum", per_sample_weights=weights)
    # On a GPU embedding_bag has a warp for each row, of which C threads work.
    picked = values.index_select(0, index.view(-1)).mul_(weights.view(-1, 1))
    if starts is None:
        return picked.view(*index.shape, -1).sum(dim=1)
    return pad(torch.segment_reduce(picked, "sum", offsets=starts, unsafe=True), (0, 0, 0, 1))


def group(keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bring equal keys (K,) together.

    Returns
    -------
    distinct, number, order, counts
        The distinct keys, ascending; which of them each key is; what sorts the keys; how often each occurs. All but the
        first are int32.
    """
    ordered, order = keys.sort(stable=True)
    distinct, number, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    return distinct, torch.empty_like(number.int()).scatter_(0, order, number.int()), order.int(), counts.int()


def starts(counts: Tensor) -> Tensor:
    """(K + 1,) int32: where rows of these lengths start; after the last, an empty one, whose sum is zero."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)])


def elevation(dimensions: int) -> Tensor:
    """(d + 1, d) float32: ``E``, which takes points into the plane of the lattice (page 5).

    It is scaled so that splat, blur and slice together have a standard deviation of 1 (page 6).
    """
    deviation = torch.tensor(math.sqrt(2 / 3) * (dimensions + 1), dtype=torch.float32)
    numbers = torch.arange(1, dimensions + 1, dtype=torch.float64)
    scale = (deviation / (numbers * (numbers + 1)).sqrt()).float()
    upper = torch.ones(dimensions, dimensions).triu(1) - torch.diag(numbers).float()
    return torch.cat([torch.ones(1, dimensions), upper]) * scale


def enclosing_simplex(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each point.

    Parameters
    ----------
    points
        (d, N) float32.

    Returns
    -------
    origin, rank, offsets
        (d + 1, N) each: the simplex's vertex of remainder 0, in units of d + 1 (float32, whole numbers); the place of
        each coordinate of what leads from it to the point, 0 the largest (int64); and this difference (float32).
    """
    size = len(points) + 1
    # Which vertices there are depends on how points at the faces of simplices are rounded: all as in pydensecrf.
    scale = elevation(size - 1)
    elevated = points.new_empty(size, points.shape[1])
    total = torch.zeros_like(points[0])
    for axis in range(size - 1, 0, -1):
        scaled = points[axis - 1] * float(scale[0, axis - 1])
        elevated[axis] = total - scaled * axis
        total += scaled
    elevated[0] = total
    origin = (elevated * (1 / size)).round_()
    offsets = elevated - origin * size
    # Places from all pairs: faster than to sort. Of equal ones the first comes first.
    rank = origin.sum(0).to(torch.int8).repeat(size, 1)
    for axis in range(size - 1):
        smaller = offsets[axis] < offsets[axis + 1 :]
        rank[axis] += smaller.sum(0, dtype=torch.int8)
        rank[axis + 1 :] += ~smaller
    # Where the rounded coordinates do not add up to 0, those with the largest error move by one unit.
    turn = (rank < 0).to(torch.int8) - (rank >= size).to(torch.int8)
    origin += turn
    return origin, rank.add_(turn, alpha=size).long(), elevated.sub_(origin, alpha=size)


def barycentric(rank: Tensor, offsets: Tensor) -> Tensor:
    """(d + 1, N) float32: the weight of the simplex's vertex of each remainder (page 10)."""
    by_rank = torch.empty_like(offsets).scatter_(0, rank, offsets).div_(len(offsets))
    weights = by_rank.flip(0)
    weights[1:] -= by_rank.flip(0)[:-1]
    weights[0] += 1 - by_rank[0]
    return weights


class VertexKeys:
    """Vertices packed into one number each, int32 if that is enough, else int64.

    A vertex ``v`` of d + 1 coordinates, whose sum is 0, is told by the whole numbers ``v_0`` and
    ``(v_i - v_0) / (d + 1)`` with i from 1 to d - 1: digits of a number of mixed radix. So the way to the neighbour
    along an axis is the same difference of keys for every vertex: ``steps``, (d + 1,).

    Parameters
    ----------
    points
        (d, N) float32, which the lattice is to enclose.
    images
        As of :class:`GaussianFilter`: the number of its image is a further digit of a vertex.

    Raises
    ------
    InputError
        int64 is not enough.
    """

    def __init__(self, points: Tensor, images: int = 1) -> None:
        size = len(points) + 1
        self._points_per_image = points.shape[1] // images
        digits = elevation(size - 1).to(points.device) / size
        digits[1:-1] -= digits[0].clone()
        digits = digits[:-1]
        least, most = points.aminmax(dim=1)
        middle, reach = digits @ (least + most) / 2, digits.abs() @ (most - least) / 2
        # Rounding moves a simplex's origin by a unit or less; its other vertices and their neighbours are two away.
        self._lowest = (middle - reach).floor() - 3
        spans = ((middle + reach).ceil() + 4 - self._lowest).double().tolist()
        spans[0] *= size  # v_0 counts parts of units
        if not images * math.prod(spans) < torch.iinfo(torch.int64).max:  # nor NaN
            raise InputError("the CRF's deviations (alpha, beta, gamma) are too small for this image")
        spans = [int(span) for span in spans]
        self._vertices_per_image = math.prod(spans)
        dtype = torch.int32 if images * self._vertices_per_image <= torch.iinfo(torch.int32).max else torch.int64
        first, *others = (math.prod(spans[axis + 1 :]) for axis in range(size - 1))
        # To a neighbour: -1 along all axes but one, and d along that.
        steps = [(size - 1) * first - sum(others), *(other - first for other in others), -first]
        self.steps = torch.tensor(steps, dtype=dtype, device=points.device)
        self._strides = [size * first, *others]

    def __call__(self, origin: Tensor, rank: Tensor, start: int = 0) -> Tensor:
        """(d + 1, N): the keys of a simplex's vertices, as of :func:`enclosing_simplex`, by remainder.

        ``start`` is the number of the first of these points.
        """
        keys = torch.empty_like(rank, dtype=self.steps.dtype)
        torch.mul((origin[0] - self._lowest[0]).to(keys.dtype), self._strides[0], out=keys[0])
        for axis in range(1, len(origin) - 1):
            digit = origin[axis] - origin[0] - self._lowest[axis]
            keys[0] += digit.to(keys.dtype).mul_(self._strides[axis])
        if self._points_per_image < start + keys.shape[1]:
            number = torch.arange(start, start + keys.shape[1], device=keys.device)
            number = number.div_(self._points_per_image, rounding_mode="floor")
            keys[0] += number.to(keys.dtype).mul_(self._vertices_per_image)
        # From a vertex to the one of the next remainder: the way back from a neighbour.
        turns = torch.empty_like(keys).scatter_(0, rank, self.steps[:, None].expand_as(rank))
        for remainder in range(1, len(origin)):
            torch.sub(keys[remainder - 1], turns[-remainder], out=keys[remainder])
        return keys


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
        table[:, 0] = torch.arange(count + 1, device=vertices.device)
        table[after[found], 1] = found.int()
        table[found, 2] = after[found].int()
        tables.append(table)
    return tables
