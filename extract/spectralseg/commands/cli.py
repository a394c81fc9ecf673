r"""The extract stage: images -> features -> eigenvectors -> masks, segments, boxes, ... One command per step.

All at once, for one's own photographs:

    python extract.py run --images ../data/samples/images --output ../outputs/photographs

Step by step:

    python extract.py extract_features --images_list ../data/samples/images.txt \
        --images_root ../data/samples/images --model_name dino_vits16 --batch_size 1 \
        --output_dir ../outputs/samples/features
    python extract.py extract_eigs --images_root ../data/samples/images \
        --features_dir ../outputs/samples/features --which_matrix laplacian --K 5 \
        --output_dir ../outputs/samples/eigs
    python extract.py vis_eigs --images_root ../data/samples/images \
        --eigs_dir ../outputs/samples/eigs --output_dir ../outputs/samples/pictures

All commands: results that exist are kept (``--overwrite`` redoes them), so a command that was interrupted goes on when
it is started again. Started under ``torchrun``, ``accelerate launch`` or Slurm, each process takes its share of the
images. An image that cannot be handled is reported and the others go on; the exit status is then 1.
"""

import sys
from collections.abc import Callable, Sequence

from spectralseg.errors import InputError
from spectralseg.running import fire_app
from spectralseg.settings import settings_from

# Of extract_eigs, what is said of images instead of features, and its defaults.
OF_IMAGES = {"images_list": None, "model_name": None, "which_block": -1, "weights": None, "dtype": "float32"}
OF_IMAGES |= dict.fromkeys(("resize", "center_crop", "max_size", "debias", "batch_size", "num_workers"))


def extract_features(
    images_list: str,
    images_root: str,
    model_name: str,
    output_dir: str,
    which_block: tuple[int, ...] = (-1,),
    which_features: tuple[str, ...] = ("k",),
    weights: str | None = None,
    dtype: str = "float32",
    storage_dtype: str = "float32",
    resize: int | None = None,
    center_crop: int | None = None,
    max_size: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    num_workers: int | None = None,
    overwrite: bool = False,
    debias: str | None = None,
) -> None:
    r"""Extract features (by default the keys of the last block) of a list of images.

    Example:
        python extract.py extract_features \
            --images_list ../data/VOC2012/lists/images.txt --images_root ../data/VOC2012/images \
            --model_name dino_vits16 --batch_size 1 --output_dir ../data/VOC2012/features/dino_vits16

    Writes <output_dir>/<id>.pth for each image (id: file name without extension): a dict with k (1, T, D) for
    T = (H // P) * (W // P) row-major patches, indices, file, id, model_name, patch_size, shape = (1, 3, H, W), weights.

    Args:
        images_list: Text file with one image name per line.
        images_root: Folder the names are relative to.
        model_name: dino_vits16, dino_vits8, dino_vits8_300ep, dino_vitb16, dino_vitb8; dinov2_vit{s,b,l,g}14[_reg];
            dinov3_vit{s,splus,b,l,hplus}16; any plain ViT of timm by its timm name; without weights: lab_graph, colours
            of cells for extract_eigs --which_matrix local, and lab_hog, lab_hog8, which know nothing of objects.
        output_dir: Folder of the features.
        which_block: Block to read, -1 being the last; several separated by commas (-3,-2,-1) are stored as
            k_block_-3, ..., and the deepest one as k.
        which_features: Any of k, q, v (keys, queries, values), out (the block's output, after the model's final norm),
            cls (the model's output for [CLS]) and attn_cls (attention of [CLS] to the patches, per head), separated by
            commas.
        weights: Path or address of a checkpoint, or random (fixed seed, for tests). Default: the published weights,
            downloaded once.
        dtype: Computation in float32, or in bfloat16 / float16 (autocast).
        storage_dtype: Type of the stored features.
        resize: Shorter side of the images to that many pixels (nearest neighbour), as EAGLE's loader does.
        center_crop: Then a centred square of that many pixels.
        max_size: Instead of resize, longer side of the images to at most that many pixels. Default: 400 with lab_graph
            (about 40 x 30 cells), else none.
        batch_size: Images of one size that go through the backbone together; results do not depend on it. Default: 1 on
            a CPU, 32 on a GPU.
        device: auto, cpu, cuda, cuda:1, ...
        num_workers: Processes that decode images. Default: none on a CPU, up to 8 beside a GPU.
        overwrite: Redo features that exist.
        debias: position removes from k, q, v and out what the position alone contributes: the features of an image of
            the mean colour, less their mean over the patches.
    """
    from spectralseg.commands import features

    settings = settings_from(features.FeatureSettings, locals())
    features.extract_features(
        images_list, images_root, output_dir, settings, batch_size, device, num_workers, overwrite
    )


def extract_eigs(
    images_root: str,
    output_dir: str,
    features_dir: str | None = None,
    images_list: str | None = None,
    model_name: str | None = None,
    which_matrix: str = "laplacian",
    which_color_matrix: str = "knn",
    which_features: str = "k",
    normalize: bool = True,
    threshold_at_zero: bool = True,
    lapnorm: bool = True,
    K: int = 20,
    image_downsample_factor: int | None = None,
    image_color_lambda: float = 0.0,
    color_grid: str = "cropped",
    multiprocessing: int = 0,
    solver: str = "auto",
    local_radius: int = 2,
    local_scale: float = 0.1,
    device: str = "auto",
    overwrite: bool = False,
    joint: bool = False,
    which_block: int = -1,
    weights: str | None = None,
    dtype: str = "float32",
    resize: int | None = None,
    center_crop: int | None = None,
    max_size: int | None = None,
    debias: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> None:
    r"""Extract the eigenvectors of each image's graph of patches, from features or from the images themselves.

    Example:
        python extract.py extract_eigs \
            --images_root ../data/VOC2012/images --features_dir ../data/VOC2012/features/dino_vits16 \
            --which_matrix laplacian --output_dir ../data/VOC2012/eigs/laplacian --K 5
        python extract.py extract_eigs \
            --images_list ../data/VOC2012/lists/images.txt --images_root ../data/VOC2012/images \
            --model_name dino_vits16 --output_dir ../data/VOC2012/eigs/direct --K 5

    The second writes what extract_features and the first would, without the features, 1.1 MB an image.

    Writes <output_dir>/<id>.pth for each image: a dict with eigenvalues (K,) and eigenvectors (K, T'),
    ascending for Laplacians and descending for affinities; id, shape, grid (rows, columns of T'), step (pixels per
    cell), which_matrix, file.

    Args:
        images_root: Folder of the images; beside features_dir read only when colour is asked for.
        output_dir: Folder of the eigenvectors.
        features_dir: Output folder of extract_features.
        images_list: Instead of it, text file with one image name per line.
        model_name: Then the backbone, as of extract_features; so are which_block (one), weights, dtype, resize,
            center_crop, max_size, debias, batch_size and num_workers.
        which_matrix: laplacian (matting_laplacian is the same), affinity, affinity_torch (affinity by dense LAPACK),
            affinity_svd (left singular vectors of the features), or local, a Laplacian of neighbours with affinity
            exp(-distance / local_scale) of their features as they are stored.
        which_color_matrix: knn or rw: the colour affinity added when image_color_lambda is above 0.
        which_features: Field of the features files: k, q, v, out, k_block_-2, ...; from images, k, q, v or out.
        normalize: L2-normalise the features.
        threshold_at_zero: Negative affinities become 0.
        lapnorm: Normalised problem (D - W) x = l D x; else (D - W) x = l x.
        K: Number of eigenvectors, the constant one included.
        image_downsample_factor: Pixels per cell of the eigenvectors, if not the patch size; refused beside an affinity,
            where the published code ignores it.
        image_color_lambda: Weight of the colour affinity (published: 0 for localization, 10 for segmentation); refused
            beside an affinity or if negative, where the published code ignores it.
        color_grid: cropped takes colours from the part of the photograph that whole patches cover, where the features
            lie; released from the whole photograph, squeezed into their grid, as the published code does.
        multiprocessing: Processes with one thread each; 0 works in this process with all threads.
        solver: auto, or dense for LAPACK always; of graphs beyond the memory, blocked, exact, with 512 rows of the
            affinities at a time, or landmarks, approximate, from the affinities to 1000 patches.
        local_radius: Of local: patches at most so many rows and columns apart are neighbours; so are all at the border.
        local_scale: Of local: distance of features at which the affinity is 1/e. 0.1 is for lab_graph, CIELAB / 100;
            keys of a ViT are farther apart.
        device: auto, cpu, cuda, cuda:1, ...; on a GPU images of one size are solved together.
        overwrite: Redo eigenvectors that exist.
        joint: One graph of the patches of all images (or frames of a video) instead of one each: eigenvectors mean the
            same in all of them, and extract_multi_region_segmentations gives a segment one number. With many images
            take --solver landmarks or blocked.
        which_block: From images, the block to read.
        weights: From images, path or address of a checkpoint, or random.
        dtype: From images, float32, bfloat16 or float16.
        resize: From images, their shorter side.
        center_crop: From images, side of a centred square.
        max_size: From images, their longer side at most.
        debias: From images, position or nothing.
        batch_size: From images, how many go through the backbone together.
        num_workers: From images, processes that decode them.
    """
    from spectralseg.commands import eigs, features

    given = locals()
    settings = settings_from(eigs.EigenSettings, given)
    if features_dir is not None:
        own = [name for name in OF_IMAGES if given[name] != OF_IMAGES[name]]
        if own:
            raise InputError(f"{' and '.join(own)} would make features, and features_dir has them: give one of both")
        eigs.extract_eigs(images_root, features_dir, output_dir, settings, multiprocessing, device, overwrite)
        return
    if images_list is None or model_name is None:
        raise InputError("give --features_dir, or --images_list and --model_name")
    if multiprocessing:
        raise InputError("multiprocessing is for features in files: leave it out beside images_list")
    asked = given | {"which_block": (which_block,), "which_features": (which_features,)}
    of_features = settings_from(features.FeatureSettings, asked)
    how = (batch_size, device, num_workers, overwrite)
    eigs.extract_eigs_of_images(images_list, images_root, output_dir, of_features, settings, *how)


def vis_eigs(
    images_root: str,
    eigs_dir: str,
    output_dir: str,
    features_dir: str | None = None,
    images_list: str | None = None,
    num_eigenvectors: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> None:
    r"""Draw each photograph beside its first eigenvectors: one PNG per image, and a page index.html of them all.

    Example:
        python extract.py vis_eigs \
            --images_root ../data/VOC2012/images --eigs_dir ../data/VOC2012/eigs/laplacian \
            --output_dir ../data/VOC2012/pictures/laplacian --limit 100

    Args:
        images_root: Folder of the images.
        eigs_dir: Output folder of extract_eigs.
        output_dir: Folder of the pictures.
        features_dir: Output folder of extract_features; adds the attention of [CLS] where it is stored (attn_cls).
        images_list: Draw the images of this list only.
        num_eigenvectors: How many eigenvectors to draw, a constant first one left out. Default: all, at most 8.
        limit: Draw the first so many images only.
        overwrite: Redo pictures that exist.
    """
    from spectralseg.commands import vis_eigs as command

    command.vis_eigs(images_root, eigs_dir, output_dir, features_dir, images_list, num_eigenvectors, limit, overwrite)


def extract_single_region_segmentations(
    eigs_dir: str,
    output_dir: str,
    features_dir: str | None = None,
    threshold: float = 0.0,
    mask_format: str = "palette",
    foreground: str = "eigenvector",
    multiprocessing: int = 0,
    overwrite: bool = False,
) -> None:
    r"""Segment the main object of each image: where eigenvector 1 is above a threshold, or what is unlike the border.

    Example:
        python extract.py extract_single_region_segmentations \
            --features_dir ../data/VOC2012/features/dino_vits16 --eigs_dir ../data/VOC2012/eigs/laplacian \
            --output_dir ../data/VOC2012/single_region_segmentation/patches/laplacian

    Writes <output_dir>/<id>.png at the grid of the eigenvectors.

    Args:
        eigs_dir: Output folder of extract_eigs.
        output_dir: Folder of the masks.
        features_dir: Output folder of extract_features; needed for robust, and beside files of the published code.
        threshold: Entries above it are foreground.
        mask_format: palette writes a palette PNG with values 0 and 1, which looks like a mask in any viewer; binary an
            8-bit grey PNG with 0 and 255, which the published evaluation and other tools read; soft, of ranking and
            robust, a grey PNG of probability * 255.
        foreground: eigenvector; ranking, how unlike the image's border a cell is by the (3 or more, better 20)
            eigenvectors of a Laplacian; or robust, how little its colours reach the border, of features of lab_graph.
            The last two part their map at Otsu's threshold, robust above a smooth ground.
        multiprocessing: Processes; 0 works in this one.
        overwrite: Redo masks that exist.
    """
    from spectralseg.commands import masks

    settings = settings_from(masks.SingleRegionSettings, locals())
    masks.extract_single_region_segmentations(features_dir, eigs_dir, output_dir, settings, multiprocessing, overwrite)


def extract_multi_region_segmentations(
    eigs_dir: str,
    output_dir: str,
    features_dir: str | None = None,
    adaptive: bool = False,
    non_adaptive_num_segments: int = 4,
    infer_bg_index: bool = True,
    kmeans_baseline: bool = False,
    num_eigenvectors: int = 1_000_000,
    multiprocessing: int = 0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    r"""Segment each image into several regions: K-means on its eigenvectors.

    Example:
        python extract.py extract_multi_region_segmentations --non_adaptive_num_segments 15 \
            --features_dir ../data/VOC2012/features/dino_vits16 --eigs_dir ../data/VOC2012/eigs/laplacian \
            --output_dir ../data/VOC2012/multi_region_segmentation/laplacian

    Writes <output_dir>/<id>.png, a palette PNG of segment numbers, at the grid of the eigenvectors.

    Args:
        eigs_dir: Output folder of extract_eigs.
        output_dir: Folder of the segment maps.
        features_dir: Output folder of extract_features; needed for kmeans_baseline, and beside files of the published
            code.
        adaptive: Choose the number of segments by the largest gap between eigenvalues.
        non_adaptive_num_segments: Number of segments otherwise.
        infer_bg_index: The segment that holds most of the image border becomes number 0, the background.
        kmeans_baseline: Cluster the features instead of the eigenvectors.
        num_eigenvectors: Use eigenvectors 1 to this number; below 1 is refused, where the published code counts from
            the end (-2 leaves out the last one).
        multiprocessing: Processes; 0 works in this one.
        seed: Of K-means (best of 10 starts; published: no seed, and scikit-learn's default of 10 starts before its
            version 1.4, one since).
        overwrite: Redo segment maps that exist.
    """
    from spectralseg.commands import masks

    settings = settings_from(masks.MultiRegionSettings, locals())
    masks.extract_multi_region_segmentations(features_dir, eigs_dir, output_dir, settings, multiprocessing, overwrite)


def extract_bboxes(
    features_dir: str,
    segmentations_dir: str,
    output_file: str,
    num_erode: int = 2,
    num_dilate: int = 3,
    skip_bg_index: bool = True,
    downsample_factor: int | None = None,
    overwrite: bool = False,
) -> None:
    r"""Find the box of each segment, after removing thin parts of it.

    Example:
        python extract.py extract_bboxes --num_erode 2 --num_dilate 5 \
            --features_dir ../data/VOC2012/features/dino_vits16 \
            --segmentations_dir ../data/VOC2012/multi_region_segmentation/laplacian \
            --output_file ../data/VOC2012/multi_region_bboxes/laplacian/bboxes.pth

    Writes one file for all images: a list of dicts with bboxes (in cells), bboxes_original_resolution (in pixels),
    segment_indices, id, format = "(xmin, ymin, xmax, ymax)", the maxima exclusive.

    Args:
        features_dir: Output folder of extract_features, or of extract_eigs.
        segmentations_dir: Output folder of extract_multi_region_segmentations.
        output_file: File to write.
        num_erode: Erosions with the 3x3 cross; one that would leave nothing is skipped. A negative number is refused,
            where the published code takes it for 0.
        num_dilate: Dilations after them; likewise.
        skip_bg_index: Leave out segment 0.
        downsample_factor: Pixels per cell. Default: by the size of the segment map.
        overwrite: Redo a file that exists.
    """
    from spectralseg.commands import bboxes

    settings = settings_from(bboxes.BoxSettings, locals())
    bboxes.extract_bboxes(features_dir, segmentations_dir, output_file, settings, overwrite)


def extract_bbox_features(
    images_root: str,
    bbox_file: str,
    model_name: str,
    output_file: str,
    weights: str | None = None,
    dtype: str = "float32",
    multiprocessing: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    r"""Extract a feature of each box: the backbone's output for its crop at original resolution.

    Example:
        python extract.py extract_bbox_features --model_name dino_vits16 \
            --images_root ../data/VOC2012/images \
            --bbox_file ../data/VOC2012/multi_region_bboxes/laplacian/bboxes.pth \
            --output_file ../data/VOC2012/multi_region_bboxes/laplacian/bbox_features.pth

    Writes the list of bbox_file with features (N, D) in each dict: [CLS] after the final norm.

    Args:
        images_root: Folder of the images, of any extension.
        bbox_file: Output of extract_bboxes.
        model_name: Backbone, as for extract_features.
        output_file: File to write.
        weights: As for extract_features.
        dtype: float32, bfloat16 or float16.
        multiprocessing: Processes with one thread each, each with the backbone; 0 works in this one.
        device: auto, cpu, cuda, cuda:1, ...
        overwrite: Redo a file that exists.
    """
    from spectralseg.commands import bboxes

    bboxes.extract_bbox_features(
        images_root, bbox_file, model_name, output_file, weights, dtype, multiprocessing, device, overwrite
    )


def extract_bbox_clusters(
    bbox_features_file: str,
    output_file: str,
    num_clusters: int = 20,
    seed: int = 0,
    pca_dim: int = 0,
    overwrite: bool = False,
) -> None:
    r"""Cluster the boxes of all images.

    Example:
        python extract.py extract_bbox_clusters --num_clusters 20 --pca_dim 0 \
            --bbox_features_file ../data/VOC2012/multi_region_bboxes/laplacian/bbox_features.pth \
            --output_file ../data/VOC2012/multi_region_bboxes/laplacian/bbox_clusters.pth

    Writes the list of bbox_features_file with clusters (N,), numbered from 0, instead of features.

    Args:
        bbox_features_file: Output of extract_bbox_features.
        output_file: File to write.
        num_clusters: Number of clusters.
        seed: Of mini-batch K-means (from the best of 3 initialisations; published: scikit-learn's default, 3 before its
            version 1.4, one since) and PCA.
        pca_dim: Reduce the features to so many dimensions first; 0 does not.
        overwrite: Redo a file that exists.
    """
    from spectralseg.commands import bboxes

    bboxes.extract_bbox_clusters(bbox_features_file, output_file, num_clusters, seed, pca_dim, overwrite)


def extract_semantic_segmentations(
    segmentations_dir: str,
    bbox_clusters_file: str,
    output_dir: str,
    cluster_offset: int = 1,
    overwrite: bool = False,
) -> None:
    r"""Give each segment the number of its box's cluster: semantic maps.

    Example:
        python extract.py extract_semantic_segmentations \
            --segmentations_dir ../data/VOC2012/multi_region_segmentation/laplacian \
            --bbox_clusters_file ../data/VOC2012/multi_region_bboxes/laplacian/bbox_clusters.pth \
            --output_dir ../data/VOC2012/semantic_segmentations/patches/laplacian/segmaps

    Args:
        segmentations_dir: Output folder of extract_multi_region_segmentations.
        bbox_clusters_file: Output of extract_bbox_clusters.
        output_dir: Folder of the semantic maps.
        cluster_offset: Number of the first cluster. With 0, the published numbering, it collides with the background.
        overwrite: Redo maps that exist.
    """
    from spectralseg.commands import semantic

    semantic.extract_semantic_segmentations(
        segmentations_dir, bbox_clusters_file, output_dir, cluster_offset, overwrite
    )


def extract_crf_segmentations(
    images_list: str,
    images_root: str,
    segmentations_dir: str,
    output_dir: str,
    num_classes: int = 21,
    downsample_factor: int = 16,
    mask_format: str = "palette",
    soft: bool = False,
    multiprocessing: int = 0,
    w1: float = 10,
    alpha: float = 80,
    beta: float = 13,
    w2: float = 3,
    gamma: float = 3,
    it: int = 5,
    crf_backend: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    r"""Sharpen label maps to the edges of the image by a dense CRF (Kraehenbuehl and Koltun 2011).

    Example:
        python extract.py extract_crf_segmentations --num_classes 2 \
            --images_list ../data/VOC2012/lists/images.txt --images_root ../data/VOC2012/images \
            --segmentations_dir ../data/VOC2012/single_region_segmentation/patches/laplacian \
            --output_dir ../data/VOC2012/single_region_segmentation/crf/laplacian

    Writes <output_dir>/<id>.png at the size of the image.

    Args:
        images_list: Text file with one image name per line.
        images_root: Folder the names are relative to.
        segmentations_dir: Folder of masks, segment maps or semantic maps.
        output_dir: Folder of the sharpened maps.
        num_classes: Number of labels, background included: 2 for masks.
        downsample_factor: Patch size of the label maps, in pixels.
        mask_format: palette, or binary for a grey PNG with 0 and 255 (two classes only).
        soft: The maps are probabilities (--mask_format soft); two classes only.
        multiprocessing: Processes; 0 works in this one.
        w1: Weight of the bilateral term.
        alpha: Its spatial deviation in pixels.
        beta: Its colour deviation, of 255.
        w2: Weight of the Gaussian term.
        gamma: Its spatial deviation in pixels.
        it: Iterations of inference.
        crf_backend: torch, or pydensecrf, which has to be installed and knows no GPU; auto is torch on a GPU, else
            pydensecrf where it is installed, else torch. torch is faster up to a megapixel. Of a million labels less
            than ten differ.
        device: auto, cpu, cuda, cuda:1, ...; on a GPU images of one size are sharpened together.
        overwrite: Redo maps that exist.
    """
    from spectralseg.commands import semantic

    settings = settings_from(semantic.SharpenSettings, locals())
    semantic.extract_crf_segmentations(
        images_list, images_root, segmentations_dir, output_dir, settings, multiprocessing, device, overwrite
    )


def run(
    images: str,
    output: str,
    model_name: str = "auto",
    weights: str | None = None,
    K: int | None = None,
    num_segments: int = 4,
    image_color_lambda: float = 0.0,
    color_grid: str = "cropped",
    mask_format: str = "palette",
    crf: bool = True,
    crf_backend: str = "auto",
    max_size: int | None = None,
    foreground: str | None = None,
    objects: int = 0,
    which_matrix: str | None = None,
    which_features: str = "k",
    batch_size: int | None = None,
    dtype: str = "float32",
    multiprocessing: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    r"""From photographs, a folder of them or one, to masks, cut-outs, boxes, segments and a page that shows them.

    Example:
        python extract.py run --images ../data/samples/images --output ../outputs/photographs

    Runs the stages one after the other and leaves their folders in <output> (images, eigs, single_region_segmentation,
    multi_region_segmentation; features where a stage reads them: lab_graph, objects, multiprocessing), and
    masks/<id>.png (0 and 255), cutouts/<id>.png (transparent background), outlines/<id>.jpg (outline and box),
    results.json (boxes) and index.html.

    Args:
        images: Folder of photographs of any format that Pillow reads, sub-folders included; or a single photograph.
        output: Folder of the results. Of a single photograph also a file: cut.png is its cut-out, box.json its box.
        model_name: Backbone, as for extract_features; auto is dino_vits16, or lab_graph where its weights
            cannot be had.
        weights: As for extract_features.
        K: Number of eigenvectors. Default: 5, with lab_graph 20.
        num_segments: Number of segments.
        image_color_lambda: Weight of the colour affinity.
        color_grid: As for extract_eigs.
        mask_format: Of the masks in single_region_segmentation, as for extract_single_region_segmentations.
        crf: Sharpen masks and segments to the edges of the image.
        crf_backend: As for extract_crf_segmentations.
        max_size: The stages work on copies whose longer side has at most so many pixels; masks and cut-outs have the
            size of the photographs. Default: 640, with lab_graph 400.
        foreground: As for extract_single_region_segmentations. Default: eigenvector, with lab_graph robust. Soft maps
            of the other two lie in <output>/maps.
        objects: Find up to so many objects of each photograph too, as extract_objects does: <output>/objects, and a
            part of the page. 0 does not.
        which_matrix: As for extract_eigs. Default: laplacian, with lab_graph local.
        which_features: Feature that the graph is made of: k, q, v or out.
        batch_size: As for extract_features.
        dtype: As for extract_features.
        multiprocessing: Processes for the stages after the features; 0 works in this one.
        device: auto, cpu, cuda, cuda:1, ...
        overwrite: Redo everything.
    """
    from spectralseg.commands import run as command
    from spectralseg.commands.features import FeatureSettings

    command.run(
        images,
        output,
        settings_from(FeatureSettings, locals() | {"which_features": (which_features,)}),
        settings_from(command.RunSettings, locals()),
        batch_size,
        multiprocessing,
        device,
        overwrite,
    )


def stream(
    shards: str,
    output_dir: str,
    model_name: str,
    images_root: str | None = None,
    image_column: str = "image",
    weights: str | None = None,
    dtype: str = "float32",
    which_block: int = -1,
    which_features: str = "k",
    debias: str | None = None,
    resize: int | None = None,
    center_crop: int | None = None,
    max_size: int | None = None,
    which_matrix: str | None = None,
    K: int | None = None,
    image_color_lambda: float = 0.0,
    color_grid: str = "cropped",
    foreground: str | None = None,
    num_segments: int = 4,
    eigenvectors: str = "none",
    batch_size: int = 64,
    actors: int | None = None,
    device: str = "auto",
    ray_address: str | None = None,
) -> None:
    r"""From shards of images to tables of boxes, masks and segments in one pass, on Ray Data: for millions of images.

    Example:
        python extract.py stream \
            --shards '../data/shards/images-{000..019}.tar' --model_name dino_vits16 --output_dir ../outputs/tables

    Writes <output_dir>/<shard>.parquet for each shard, a row for each image: id, shard, name, error, width, height (as
    the backbone saw it), rows, columns, step (of the grid), box, score, mask (COCO RLE at the grid), segments (label,
    counts, score, box), eigenvalues, eigenvectors if asked for. unpack makes the usual stage files of them. An image
    that cannot be handled is a row with its error. Killed, it goes on when it is started again.

    Args:
        shards: WebDataset tars, Parquet files with a column of images, or text files with one image name per line;
            several with commas between or numbered, {000..999}; paths, or addresses such as s3://bucket/a.tar.
        output_dir: Folder of the tables, or its address.
        model_name: Backbone, as for extract_features, auto left out.
        images_root: Folder or address that the names in text files are relative to.
        image_column: Of Parquet files: bytes, or a struct with bytes, as Hugging Face data sets have.
        weights: As for extract_features; a path must be there on every machine.
        dtype: As for extract_features.
        which_block: Block to read.
        which_features: Feature that the graph is made of: k, q, v or out.
        debias: As for extract_features.
        resize: As for extract_features.
        center_crop: As for extract_features.
        max_size: As for extract_features.
        which_matrix: As for extract_eigs. Default: laplacian, with lab_graph local.
        K: Number of eigenvectors. Default: 5, with lab_graph 20.
        image_color_lambda: As for extract_eigs.
        color_grid: As for extract_eigs.
        foreground: As for extract_single_region_segmentations. Default: eigenvector, with lab_graph robust.
        num_segments: Number of segments.
        eigenvectors: Store them too: float16 or float32.
        batch_size: Images that are read, computed and written together; those of one size share a batch on a GPU.
        actors: Processes that hold the backbone. Default: one per GPU, or per core.
        device: auto, cpu or cuda.
        ray_address: Of a Ray cluster to join, as ray start --head tells it. Default: this machine alone.
    """
    from spectralseg.commands import features
    from spectralseg.commands import stream as command

    given = locals() | {"which_block": (which_block,), "which_features": (which_features,)}
    of_features = settings_from(features.FeatureSettings, given)
    settings = settings_from(command.StreamSettings, given | {"which_features": which_features})
    how = (images_root, actors, device, ray_address)
    command.stream(shards, output_dir, of_features, settings, *how)


def unpack(tables_dir: str, output_dir: str, overwrite: bool = False) -> None:
    r"""Make the usual stage files of what stream wrote.

    Example:
        python extract.py unpack --tables_dir ../outputs/tables --output_dir ../outputs/unpacked

    Writes <output_dir>/single_region_segmentation/patches, multi_region_segmentation/patches, bboxes.pth and, where
    the tables hold eigenvectors, eigs.

    Args:
        tables_dir: Output folder of stream.
        output_dir: Folder of the stage folders.
        overwrite: Redo files that exist.
    """
    from spectralseg.commands.unpack import unpack as command

    command(tables_dir, output_dir, overwrite)


def extract_objects(
    images_list: str,
    images_root: str,
    features_dir: str,
    output_dir: str,
    method: str = "maskcut",
    which_features: str = "k",
    max_objects: int = 3,
    tau: tuple[float, ...] = (0.15,),
    min_separation: float = 0.2,
    crf: bool = True,
    crf_backend: str = "auto",
    save_masks: bool = False,
    multiprocessing: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    r"""Find several objects per image, with masks and scores, as a COCO file.

    Example:
        python extract.py extract_objects \
            --images_list ../data/VOC2012/lists/images.txt --images_root ../data/VOC2012/images \
            --features_dir ../data/VOC2012/features/dino_vits16 --output_dir ../data/VOC2012/objects/maskcut

    Writes <output_dir>/objects.json, a COCO instances file (category 1, "object"; segmentation as RLE, bbox, area,
    score) that COCO's tools, torchvision and labelling programs read, and <output_dir>/<id>.objects.json per image,
    from which it is put together. An image may have no object.

    Args:
        images_list: Text file with one image name per line.
        images_root: Folder the names are relative to.
        features_dir: Output folder of extract_features.
        output_dir: Folder of the results.
        method: maskcut (Wang et al. 2023: one cut of the graph after the other), or segments (one eigenproblem, whose
            segments but the background are objects; cheaper).
        which_features: Feature to read, as extract_eigs does.
        max_objects: At most so many per image.
        tau: maskcut: least cosine of an edge; several, separated by commas, each into <output_dir>/tau_0.1, ...
        min_separation: What stands out less is no object: the mean cosine of two of its patches, less that of one of
            them and one outside.
        crf: Sharpen the masks to the edges of the image, and drop those that it changes much.
        crf_backend: As for extract_crf_segmentations.
        save_masks: Write the best object of each image to <output_dir>/masks/<id>.png too, a mask at the size of the
            image that object segmentation evaluates; also of a folder that is complete.
        multiprocessing: Processes; 0 works in this one.
        device: auto, cpu, cuda, cuda:1, ...; on a GPU images of one size are cut together.
        overwrite: Redo images that are there.
    """
    from spectralseg.commands import objects

    given = locals()
    for one in dict.fromkeys(tau):
        settings = settings_from(objects.ObjectSettings, given | {"tau": one})
        folder = output_dir if len(tau) == 1 else f"{output_dir}/tau_{one:g}"
        objects.extract_objects(
            images_list, images_root, features_dir, folder, settings, multiprocessing, device, overwrite, save_masks
        )


def vis_objects(objects_file: str, images_root: str, output_dir: str, limit: int = 1000) -> None:
    r"""Draw the objects of each image: a page index.html with outlines, numbers, scores and cut-outs.

    Example:
        python extract.py vis_objects --objects_file ../data/VOC2012/objects/maskcut/objects.json \
            --images_root ../data/VOC2012/images --output_dir ../data/VOC2012/pictures/objects --limit 100

    Args:
        objects_file: objects.json of extract_objects.
        images_root: Folder of the images.
        output_dir: Folder of the page.
        limit: Draw the first so many images only.
    """
    from spectralseg.commands import vis_objects as command

    command.vis_objects(objects_file, images_root, output_dir, limit)


def extract_mattes(
    images_list: str,
    images_root: str,
    segmentations_dir: str,
    output_dir: str,
    method: str = "closed_form",
    num_erode: int | None = None,
    num_dilate: int | None = None,
    downsample_factor: int = 16,
    multiprocessing: int = 0,
    overwrite: bool = False,
) -> None:
    r"""Cut the object out of each image: soft edges, transparent background.

    Example:
        python extract.py extract_mattes \
            --images_list ../data/VOC2012/lists/images.txt --images_root ../data/VOC2012/images \
            --segmentations_dir ../data/VOC2012/single_region_segmentation/crf/laplacian \
            --output_dir ../data/VOC2012/mattes/laplacian

    Writes <output_dir>/<id>.png, RGBA at the size of the image: alpha from matting, colours of the foreground alone.
    Pixels near the edge of the mask count as unknown, and matting decides about them. Each part of the mask keeps some
    certain pixels, however thin it is. An empty mask gives a fully transparent cut-out, and is reported.

    Needs pymatting, and about 1 GB of memory in each process: alpha of larger images than 2 megapixels (knn: 0.4) is
    solved for on a reduced image.

    Args:
        images_list: Text file with one image name per line.
        images_root: Folder the names are relative to.
        segmentations_dir: Folder of masks, at patches or at full size; what is not 0 is foreground.
        output_dir: Folder of the cut-outs.
        method: closed_form (Levin et al. 2008), or knn (Chen et al. 2012), which takes ten times as long.
        num_erode: Width of the unknown band inside the edge, in pixels. Default: 1.5 % of the image's shorter side, at
            least 3, and at least half a patch where the mask is at patches.
        num_dilate: Width of the band outside the edge; the same default.
        downsample_factor: Patch size of masks at patches, in pixels.
        multiprocessing: Processes; 0 works in this one.
        overwrite: Redo cut-outs that exist.
    """
    from spectralseg.commands import mattes

    settings = settings_from(mattes.MatteSettings, locals())
    mattes.extract_mattes(images_list, images_root, segmentations_dir, output_dir, settings, multiprocessing, overwrite)


def vis_segmentations(images_list: str, images_root: str, segmentations_dir: str, bbox_file: str | None = None) -> None:
    r"""Look through images, their boxes and segmentations, in the browser.

    Example:
        streamlit run extract.py vis_segmentations -- \
            --images_list ../data/VOC2012/lists/images.txt --images_root ../data/VOC2012/images \
            --segmentations_dir ../data/VOC2012/semantic_segmentations/patches/laplacian/segmaps \
            --bbox_file ../data/VOC2012/multi_region_bboxes/laplacian/bbox_clusters.pth

    Needs Streamlit. Only the images that are looked at are opened, so the list may be long.

    Args:
        images_list: Text file with one image name per line.
        images_root: Folder the names are relative to.
        segmentations_dir: Folder of masks, segment maps or semantic maps, at patches or at full size.
        bbox_file: Output of extract_bboxes, extract_bbox_features or extract_bbox_clusters: draws the boxes.
    """
    from spectralseg.commands import viewer

    viewer.vis_segmentations(images_list, images_root, segmentations_dir, bbox_file)


def demo(images: str | None = None, model_name: str = "auto", weights: str | None = None, device: str = "auto") -> None:
    r"""Try photographs and settings in the browser: eigenvectors, object, segments, objects, cut-out.

    Example:
        streamlit run extract.py demo -- --model_name lab_graph

    Needs Streamlit. Photographs that are dropped on the page lie in a temporary folder until the page is closed down;
    the page shows the command lines that write the same files.

    Args:
        images: Folder of photographs to choose from. Default: data/samples/images.
        model_name: Backbone to begin with, as for run.
        weights: Of that backbone, as for extract_features.
        device: auto, cpu, cuda, cuda:1, ...
    """
    from spectralseg.commands import demo as command

    command.demo(images, model_name, weights, device)


COMMANDS: list[Callable[..., None]] = [
    fire_app.with_verbose(command)
    for command in (
        run,
        demo,
        extract_features,
        extract_eigs,
        extract_single_region_segmentations,
        extract_multi_region_segmentations,
        extract_bboxes,
        extract_bbox_features,
        extract_bbox_clusters,
        extract_semantic_segmentations,
        extract_crf_segmentations,
        extract_objects,
        extract_mattes,
        stream,
        unpack,
        vis_eigs,
        vis_objects,
        vis_segmentations,
    )
]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 on an error."""
    try:
        fire_app.main(COMMANDS, argv)
    except SystemExit as stop:
        if "streamlit" in sys.modules:  # it serves the page, where an exit ends nothing and shows nothing
            from spectralseg.commands.viewer import show_error

            show_error(stop.code if isinstance(stop.code, str) else "see the terminal that Streamlit was started in")
        raise


if __name__ == "__main__":  # streamlit run, where there is no extract.py
    main()
