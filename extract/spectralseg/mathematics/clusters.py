"""Clusters of segments over the whole data set, and the semantic maps they give.

Source: Melas-Kyriazi et al., "Deep Spectral Methods", CVPR 2022, section 3.5.
"""

import numpy as np

from spectralseg.errors import InputError

KMEANS_STARTS = 3


def cluster_features(features: np.ndarray, num_clusters: int, seed: int = 0, pca_dim: int = 0) -> np.ndarray:
    """Cluster the features of all segments.

    Parameters
    ----------
    features
        (N, D), one row per segment; rows are L2-normalised here.
    num_clusters
        At most N.
    seed
        Of PCA and of the mini-batch K-means: batches of 4096, run once from the best of 3 initialisations. (The
        published code names no number: scikit-learn's default, 3 before version 1.4 and 1 since.)
    pca_dim
        Reduce to so many dimensions first; 0: not at all.

    Returns
    -------
    np.ndarray
        (N,) cluster numbers from 0.
    """
    count, dimension = features.shape
    if not 1 <= num_clusters <= count:
        raise InputError(f"{num_clusters} clusters of {count} segments: ask for 1 to {count}")
    if not 0 <= pca_dim <= min(count, dimension):
        raise InputError(f"pca_dim={pca_dim} of {count} features with {dimension} dimensions")
    from sklearn.cluster import MiniBatchKMeans  # take seconds to import, which most commands need not wait for
    from sklearn.decomposition import PCA

    norms = np.linalg.norm(features, axis=1, keepdims=True)
    features = features / np.where(norms > 0, norms, 1)
    if pca_dim:
        features = PCA(pca_dim, random_state=seed).fit_transform(features)
    means = MiniBatchKMeans(num_clusters, batch_size=4096, max_iter=5000, n_init=KMEANS_STARTS, random_state=seed)
    return means.fit_predict(features)


def semantic_map(segments: np.ndarray, labels: list[int], clusters: list[int], cluster_offset: int = 1) -> np.ndarray:
    """Replace segment labels by cluster numbers.

    Parameters
    ----------
    segments
        (rows, columns) segment map.
    labels, clusters
        Segment labels that have a box, and the cluster of each (from 0).
    cluster_offset
        Added to the cluster numbers. 1 keeps cluster 0 apart from the background; 0 is the published numbering, where
        they collide.

    Returns
    -------
    np.ndarray
        (rows, columns) uint8; background and segments without a box are 0.

    Raises
    ------
    InputError
        Labels without clusters or beyond 255, or a cluster number beyond 255.
    """
    if len(labels) != len(clusters):
        raise InputError(f"{len(labels)} labels and {len(clusters)} clusters: each label needs one")
    if labels and not 0 <= min(labels) <= max(labels) <= 255:
        raise InputError(f"labels {min(labels)} to {max(labels)}: a label map holds 0 to 255")
    table = np.zeros(256, dtype=np.int64)
    table[labels] = np.asarray(clusters, dtype=np.int64) + cluster_offset
    if table.max() > 255 or table.min() < 0:
        raise InputError(f"cluster {table.max()}: a label map holds 0 to 255")
    return table[segments].astype(np.uint8)
