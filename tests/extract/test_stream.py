"""Shards of images, one pass over them on Ray, and the stage files made of its tables."""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from running import EXTRACT, as_flags, picture, refused_here, run_command, run_here, write_pictures

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("ray", reason="needs the extra scale")

from pyarrow import parquet  # noqa: E402

from spectralseg.commands import rows  # noqa: E402
from spectralseg.errors import InputError  # noqa: E402
from spectralseg.files.shards import Entry, Shard, TableFolder, entries_of, find_shards, id_of  # noqa: E402


def png(seed: int, **size: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed, **size).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def entries(path: Path, **options: str) -> dict[str, str | bytes]:
    """Id -> bytes or problem."""
    return {each.id: each.problem or each.content for each in entries_of(Shard("s", str(path)), **options)}


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_entries_of_a_tar(tmp_path, suffix, mode):
    members = {"a/b.left.png": b"1", "c.json": b"{}", "c.PNG": b"2", "../up.png": b"3", "/root.jpg": b"4"}
    path = write_tar(tmp_path / f"s{suffix}", members | {"c.jpg": b"5", ".hidden.png": b"6"}, mode)
    found = entries(path)
    assert (found.pop("a__b"), found.pop("c")) == (b"1", "its name stands twice in the shard")
    assert found.keys() == {"s: '../up.png'", "s: '/root.jpg'", "s: '.hidden.png'"}
    assert all("name" in str(problem) for problem in found.values())
    whole = path.read_bytes()
    for share in (0.1, 0.35, 0.6):  # a tar ends in blocks of zeros, which may be lost
        path.write_bytes(whole[: int(share * len(whole))])
        found = entries(path)
        assert "the shard ends in the middle" in str(found.pop("s: end"))
        assert found.get("a__b", b"1") == b"1"


def test_what_a_tar_may_hold_beside_files(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("folder.png", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert entries(tmp_path / "s.tar") == dict.fromkeys(("link", "hard"), "it is a link or a sparse file")
    (tmp_path / "s.tar").write_bytes(b"no tar" * 1000)
    assert entries(tmp_path / "s.tar").keys() == {"s: end"}
    (found,) = entries_of(Shard("s", str(write_tar(tmp_path / "s.tar", {"a.\udcff.png": b"1"}))))
    assert (found.id, found.name, found.content) == ("a", r"a.\udcff.png", b"1")


@pytest.mark.parametrize("damage", ["header", "appended", "sparse"])
def test_a_tar_that_tarfile_would_take_for_ended(tmp_path, damage):
    path = write_tar(tmp_path / "s.tar", {"a.png": b"1", "b.png": b"2"})
    whole = bytearray(path.read_bytes())
    if damage == "header":
        whole[2 * tarfile.BLOCKSIZE] ^= 1  # of b.png
    elif damage == "appended":
        whole = whole + whole
    else:
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("c.png")
            info.pax_headers = {"GNU.sparse.map": "0,x", "GNU.sparse.size": "9"}
            tar.addfile(info)
        whole[:] = whole[: 2 * tarfile.BLOCKSIZE] + path.read_bytes()
    path.write_bytes(whole)
    found = entries(path)
    assert found.keys() == ({"a", "b", "s: end"} if damage == "appended" else {"a", "s: end"})
    assert "what stands behind is lost" in str(found["s: end"])


def test_entries_of_tables(tmp_path):
    struct = [{"bytes": b"1", "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    parquet.write_table(pyarrow.table({"image": struct}), tmp_path / "a.parquet")
    assert entries(tmp_path / "a.parquet") == {"s-00000000": b"1", "s-00000001": "column 'image' holds no bytes"}
    parquet.write_table(
        pyarrow.table({"id": ["None", None], "image": [{"bytes": b"1", "path": 5}] * 2}), tmp_path / "a.parquet"
    )
    assert entries(tmp_path / "a.parquet").keys() == {"None", "s: '5'"}
    parquet.write_table(pyarrow.table({"id": ["x", "../y"], "jpg": [b"1", b"2"]}), tmp_path / "b.parquet")
    found = entries(tmp_path / "b.parquet", image_column="jpg")
    assert found.pop("x") == b"1"
    assert found.keys() == {"s: '../y'"}
    assert "it has no column 'image', but id, jpg" in str(entries(tmp_path / "b.parquet")["s: end"])
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    assert entries(tmp_path / "b.parquet").keys() == {"s: end"}


def test_shards_by_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a-008.tar", "a-009.tar", "a-010.tar", "b.parquet"):
        (tmp_path / name).write_bytes(b"")
    assert [shard.stem for shard in find_shards("a-{008..010}.tar,b.parquet")] == ["a-008", "a-009", "a-010", "b"]
    assert [shard.stem for shard in find_shards(f"{tmp_path}/a-*.tar")] == ["a-008", "a-009", "a-010"]
    (tmp_path / "list.txt").write_text("".join(f"{number}.png\n" for number in range(1001)))
    write_pictures(tmp_path / "images", 1)
    shards = find_shards("list.txt", "images")
    assert [(shard.stem, len(shard.names)) for shard in shards] == [("list-00000", 1000), ("list-00001", 1)]
    names = ("image0.png", "gone.png")
    first, second = entries_of(Shard("list-00000", str(tmp_path / "images"), names))
    assert first == Entry("image0", "image0.png", (tmp_path / "images" / "image0.png").read_bytes())
    assert str(second.problem).startswith("gone.png cannot be read")
    assert id_of("a/b.c.jpg") == "a__b"
    with pytest.raises(InputError, match="no such folder: none"):
        find_shards("list.txt", "none")
    for pattern, said in {
        "a-{008..011}.tar": "no such shard: a-011.tar",
        "z*.tar": "no shard matches",
        "a.zip": "is no shard: give .tar",
        "list.txt": "give the folder they lie in as --images_root",
        "a-008.tar,./a-008.tar": "twice: a-008",
        "nowhere://a.tar": "cannot be reached",
    }.items():
        with pytest.raises(InputError, match=said.replace(".", r"\.")):
            find_shards(pattern)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory) -> tuple[Path, list[str]]:
    """Two shards, one of them damaged, and what was found in them; the lines that were said."""
    folder = tmp_path_factory.mktemp("stream")
    write_tar(folder / "s-0.tar", {f"a{number}.png": png(number) for number in range(5)} | {"none.png": b"none"})
    path = write_tar(folder / "s-1.tar", {f"b{number}.png": png(9 + number, width=96) for number in range(3)})
    path.write_bytes(path.read_bytes()[:-12000])
    return folder, stream_flags(folder)


def stream_flags(folder: Path, **changes: object) -> list[str]:
    flags = {"shards": f"{folder}/s-*.tar", "model_name": "lab_hog", "K": 3, "batch_size": 2}
    return ["stream", *as_flags(**flags | {"eigenvectors": "float32", "output_dir": folder / "tables"} | changes)]


@pytest.mark.slow
def test_one_pass_gives_what_the_stages_give(streamed, capsys):
    folder, flags = streamed
    said = refused_here(capsys, *flags)
    assert "s-0/none failed: none.png cannot be read as an image" in said
    assert "s-1/s-1: end failed: the shard ends in the middle" in said
    assert said.endswith("error: 2 of 9 failed: column 'error' says why") or "2 of 8 failed" in said
    tables = folder / "tables"
    assert sorted(path.name for path in tables.glob("*.parquet")) == ["s-0.parquet", "s-1.parquet"]
    rows = [row for path in sorted(tables.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
    good = [row for row in rows if row["error"] is None]
    assert [row["id"] for row in rows][:6] == ["a0", "a1", "a2", "a3", "a4", "none"]
    assert all(0 <= row["score"] <= 1 and len(row["segments"]) == 4 and row["box"] for row in good)
    assert (good[0]["width"], good[0]["height"], good[0]["rows"], good[0]["columns"]) == (80, 64, 4, 5)

    run_here("unpack", *as_flags(tables_dir=tables, output_dir=folder / "unpacked"))
    images = folder / "images"
    images.mkdir()
    names = {f"a{number}": png(number) for number in range(5)} | {f"b{n}": png(9 + n, width=96) for n in range(3)}
    for row in good:
        (images / row["name"]).write_bytes(names[row["id"]])
    (folder / "list.txt").write_text("".join(f"{row['name']}\n" for row in good))
    stages = folder / "stages"
    of_images = {"images_list": folder / "list.txt", "images_root": images, "model_name": "lab_hog", "K": 3}
    run_here("extract_eigs", *as_flags(**of_images, output_dir=stages / "eigs"))
    segments = stages / "multi_region_segmentation" / "patches"
    of_eigs = {"eigs_dir": stages / "eigs"}
    single = stages / "single_region_segmentation" / "patches"
    run_here("extract_single_region_segmentations", *as_flags(**of_eigs, output_dir=single))
    run_here("extract_multi_region_segmentations", *as_flags(**of_eigs, output_dir=segments))
    boxes = {"features_dir": stages / "eigs", "segmentations_dir": segments, "output_file": stages / "bboxes.pth"}
    run_here("extract_bboxes", *as_flags(**boxes))
    files = sorted(path.relative_to(stages) for path in stages.rglob("*") if path.suffix in (".pth", ".png"))
    assert len(files) == 3 * len(good) + 1
    for name in files:
        assert (stages / name).read_bytes() == (folder / "unpacked" / name).read_bytes(), name
    made = [json.loads((way / "eigs" / "stage.json").read_text()) for way in (stages, folder / "unpacked")]
    assert made[0]["arguments"] == made[1]["arguments"]


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed(streamed, tmp_path, capsys):
    """A shard of which two parts are there: these are kept, and the others are made."""
    folder, _ = streamed
    if not (folder / "tables").exists():
        refused_here(capsys, *stream_flags(folder))
    tables = tmp_path / "tables"
    shutil.copytree(folder / "tables", tables)
    whole = parquet.read_table(tables / "s-0.parquet")
    (tables / "s-0.parquet").unlink()
    (tables / "parts").mkdir(exist_ok=True)
    for number, part in ((0, whole.slice(0, 2)), (2, whole.slice(4, 2))):
        changed = part.set_column(part.column_names.index("name"), "name", pyarrow.array(["kept", "kept"]))
        parquet.write_table(changed, tables / "parts" / f"s-0-{number:06d}.parquet")
    for name in ("s-1-000000", "s-0-000009", "other"):  # of a shard that is whole, of one that was longer, and neither
        parquet.write_table(whole.slice(0, 2), tables / "parts" / f"{name}.parquet")
    run_here(*stream_flags(folder, output_dir=tables))
    again = parquet.read_table(tables / "s-0.parquet")
    assert again["name"].to_pylist() == ["kept", "kept", "a2.png", "a3.png", "kept", "kept"]
    assert again.drop_columns(["name"]).equals(whole.drop_columns(["name"]))
    assert [path.name for path in (tables / "parts").iterdir()] == ["other.parquet"]
    run_here(*stream_flags(folder, output_dir=tables))
    assert "stream: 0 of 2 shards to do" in capsys.readouterr().err
    said = refused_here(capsys, *stream_flags(folder, output_dir=tables, K=4))
    assert "holds tables made with eigs.K=3 instead of 4; choose another output folder" in said


def test_said_before_any_work(tmp_path, capsys):
    write_tar(tmp_path / "s-0.tar", {"a.png": png(0)})
    for changes, said in (
        ({"model_name": "nothing"}, "error: no backbone 'nothing'"),
        ({"K": 1}, "error: K=1"),
        ({"device": "tpu"}, "error: no device 'tpu'"),
        ({"eigenvectors": "float8"}, "error: no eigenvectors 'float8'"),
        ({"shards": "none.tar"}, "error: no such shard: none.tar"),
        ({"ray_address": "127.0.0.1:9"}, "error: Ray cannot be reached at 127.0.0.1:9"),
    ):
        assert said in refused_here(capsys, *stream_flags(tmp_path, **changes))
    assert "holds no stream.json" in refused_here(capsys, "unpack", *as_flags(tables_dir=tmp_path, output_dir=tmp_path))
    parquet.write_table(pyarrow.table({"image": [b""]}), tmp_path / "s-0.parquet")
    said = refused_here(capsys, *stream_flags(tmp_path, output_dir=tmp_path))
    assert "holds Parquet files that are not of stream" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": None}, "the row of a is damaged"),
        ({"segments": [{"label": 999, "counts": "02"}]}, "the row of a is damaged"),
        ({"id": "../a"}, "'../a' is no plain name"),
        ({"told": {"K": 4}}, "was made with K=4 instead of 3"),
        ({"flip": True}, "cannot be read"),
        ({"made": []}, "does not tell how its tables were made"),
    ],
)
def test_tables_that_are_damaged(tmp_path, capsys, changes, said):
    made = {"K": 3, "eigenvectors": "none", "eigs": {}, "single": {}, "multi": {}, "boxes": {}}
    schema = rows.schema_of("none", json.dumps(made | changes.get("told", {})).encode())
    row = {"id": "a", "name": "a.png", "rows": 1, "columns": 2, "mask": "02", "segments": []}
    TableFolder(str(tmp_path)).write("s.parquet", pyarrow.Table.from_pylist([row | changes], schema))
    (tmp_path / "stream.json").write_text(json.dumps({"arguments": changes.get("made", made)}))
    if "flip" in changes:
        content = bytearray((tmp_path / "s.parquet").read_bytes())
        content[content.index(b"a.png")] ^= 1
        (tmp_path / "s.parquet").write_bytes(content)
    assert said in refused_here(capsys, "unpack", *as_flags(tables_dir=tmp_path, output_dir=tmp_path / "files"))


def test_tables_on_s3(monkeypatch):
    server_of = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = server_of(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        end = f"?endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true&region=us-east-1"
        folder = TableFolder(f"s3://bucket/tables{end}")
        table = pyarrow.table({"id": ["a", "b"]})
        folder.system.create_dir("bucket")
        folder.write("parts/a-000000.parquet", table)
        folder.write("a.parquet", table)
        assert (folder.names(), folder.names("parts")) == ({"a.parquet"}, {"a-000000.parquet"})
        assert folder.read("a.parquet").equals(table)
        folder.remove(["parts/a-000000.parquet", "parts/a-000000.parquet"])
        assert folder.names("parts") == set()
        folder.write_bytes("stream.json", b"{}")
        assert (folder.read_bytes("stream.json"), folder.read_bytes("none.json")) == (b"{}", None)
        folder.write_bytes("s.tar", b"cut")
        (shard,) = find_shards(f"s3://bucket/tables/s.tar{end}")
        assert (shard.stem, [entry.id for entry in entries_of(shard)]) == ("s", ["s: end"])
    finally:
        server.stop()


@pytest.mark.parametrize(("missing", "said"), [("ray", "stream needs Ray"), ("pyarrow", "tables need pyarrow")])
def test_without_the_extra(tmp_path, missing, said):
    start = f"import sys; sys.modules[{missing!r}] = None; from spectralseg.commands import cli; cli.main(sys.argv[1:])"
    result = run_command([sys.executable, "-c", start, *stream_flags(tmp_path)], cwd=EXTRACT.parent)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {said}: pip install 'spectralseg[scale]'")
    assert result.stderr.count("\n") == 1
