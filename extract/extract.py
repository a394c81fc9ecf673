r"""The extract stage: images -> features -> eigenvectors -> masks, segments, boxes, ... One command per step.

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

from spectralseg.cli import main


def extract_features(
    images_list: str,
    images_root: str,
    model_name: str,
    batch_size: int,
    output_dir: str,
    which_block: tuple[int, ...] = (-1,),
    which_features: tuple[str, ...] = ("k",),
    weights: str | None = None,
    dtype: str = "float32",
    storage_dtype: str = "float32",
    resize: int | None = None,
    center_crop: int | None = None,
    device: str = "auto",
    num_workers: int | None = None,
    overwrite: bool = False,
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
            dinov3_vit{s,splus,b,l,hplus}16; any plain ViT of timm by its timm name; lab_hog or lab_hog8, which need no
            weights and know nothing of objects.
        batch_size: Images of one size that go through the backbone together; results do not depend on it.
        output_dir: Folder of the features.
        which_block: Block to read, -1 being the last; several separated by commas (-3,-2,-1) are stored as
            k_block_-3, ..., and the deepest one as k.
        which_features: Any of k, q, v (keys, queries, values), cls (the model's output for [CLS]) and attn_cls
            (attention of [CLS] to the patches, per head), separated by commas.
        weights: Path or address of a checkpoint, or random (fixed seed, for tests). Default: the published weights,
            downloaded once.
        dtype: Computation in float32, or in bfloat16 / float16 (autocast).
        storage_dtype: Type of the stored features.
        resize: Shorter side of the images to that many pixels (nearest neighbour), as EAGLE's loader does.
        center_crop: Then a centred square of that many pixels.
        device: auto, cpu, cuda, cuda:1, ...
        num_workers: Processes that decode images. Default: none on a CPU, up to 8 beside a GPU.
        overwrite: Redo features that exist.
    """
    from spectralseg.commands import features

    settings = features.FeatureSettings(
        model_name=model_name,
        which_block=which_block,
        which_features=which_features,
        weights=weights,
        dtype=dtype,
        storage_dtype=storage_dtype,
        resize=resize,
        center_crop=center_crop,
    )
    features.extract_features(
        images_list, images_root, output_dir, settings, batch_size, device, num_workers, overwrite
    )


def extract_eigs(
    images_root: str,
    features_dir: str,
    output_dir: str,
    which_matrix: str = "laplacian",
    which_color_matrix: str = "knn",
    which_features: str = "k",
    normalize: bool = True,
    threshold_at_zero: bool = True,
    lapnorm: bool = True,
    K: int = 20,
    image_downsample_factor: int | None = None,
    image_color_lambda: float = 0.0,
    multiprocessing: int = 0,
    solver: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    r"""Extract the eigenvectors of each image's graph of patches.

    Example:
        python extract.py extract_eigs \
            --images_root ../data/VOC2012/images --features_dir ../data/VOC2012/features/dino_vits16 \
            --which_matrix laplacian --output_dir ../data/VOC2012/eigs/laplacian --K 5

    Writes <output_dir>/<id>.pth for each features file: a dict with eigenvalues (K,) and eigenvectors (K, T'),
    ascending for Laplacians and descending for affinities; id, shape, grid (rows, columns of T'), step (pixels per
    cell), which_matrix, file.

    Args:
        images_root: Folder of the images; read only when colour is asked for.
        features_dir: Output folder of extract_features.
        output_dir: Folder of the eigenvectors.
        which_matrix: laplacian (matting_laplacian is the same), affinity, affinity_torch (affinity by dense LAPACK),
            or affinity_svd (left singular vectors of the features).
        which_color_matrix: knn or rw: the colour affinity added when image_color_lambda is above 0.
        which_features: Field of the features files: k, q, v, k_block_-2, ...
        normalize: L2-normalise the features.
        threshold_at_zero: Negative affinities become 0.
        lapnorm: Normalised problem (D - W) x = l D x; else (D - W) x = l x.
        K: Number of eigenvectors, the constant one included.
        image_downsample_factor: Pixels per cell of the eigenvectors, if not the patch size.
        image_color_lambda: Weight of the colour affinity (published: 0 for localization, 10 for segmentation).
        multiprocessing: Processes with one thread each; 0 works in this process with all threads.
        solver: auto, or dense for LAPACK always.
        device: auto, cpu, cuda, cuda:1, ...; on a GPU images of one size are solved together.
        overwrite: Redo eigenvectors that exist.
    """
    from spectralseg.commands import eigs

    settings = eigs.EigenSettings(
        which_matrix=which_matrix,
        which_color_matrix=which_color_matrix,
        which_features=which_features,
        normalize=normalize,
        threshold_at_zero=threshold_at_zero,
        lapnorm=lapnorm,
        K=K,
        image_downsample_factor=image_downsample_factor,
        image_color_lambda=image_color_lambda,
        solver=solver,
    )
    eigs.extract_eigs(images_root, features_dir, output_dir, settings, multiprocessing, device, overwrite)


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
        num_eigenvectors: How many eigenvectors to draw. Default: all, but at most 8.
        limit: Draw the first so many images only.
        overwrite: Redo pictures that exist.
    """
    from spectralseg.commands import vis_eigs as command

    command.vis_eigs(images_root, eigs_dir, output_dir, features_dir, images_list, num_eigenvectors, limit, overwrite)


if __name__ == "__main__":
    main([extract_features, extract_eigs, vis_eigs])
