"""Records: written whole or not at all, the same bytes for the same content, and read without executing anything."""

import copy
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from running import Trap, contents, environment, forked, run_command
from spectralseg.errors import InputError, OutputError
from spectralseg.files import records, storage

HOST = socket.gethostname()


def features_record(**more):
    keys = torch.arange(24, dtype=torch.float32).view(1, 6, 4)
    return {"k": keys, "indices": 3, "file": "a.jpg", "id": "a", "patch_size": 16, "shape": (1, 3, 33, 50), **more}


# --- writing --------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.pth"

    def write_half():
        before = contents(tmp_path)
        with storage.atomic_write(path) as file:
            file.write(b"new, but")
            file.flush()
            assert before.items() < contents(tmp_path).items()
            raise KeyboardInterrupt

    for before in ({}, {"a.pth": b"old"}):
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        with pytest.raises(KeyboardInterrupt):
            write_half()
        assert contents(tmp_path) == before
    with storage.atomic_write(path) as file:
        file.write(b"new")
    assert contents(tmp_path) == {"a.pth": b"new"}


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.pth", tmp_path / "absent" / "a.pth", tmp_path / f"{'x' * 300}.pth"):
        with pytest.raises(OutputError, match=r"^cannot write .*: (Not a directory|No such file|File name too long)"):
            storage.save_record(path, {"id": "a"})
    with pytest.raises(OutputError, match=r"^cannot create the folder .*/file/folder: Not a directory$"):
        storage.make_folder(tmp_path / "file" / "folder")
    with pytest.raises(OutputError, match=r"^cannot create the folder .*/file: File exists$"):
        storage.make_folder(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"^cannot delete .*/folder: "):
        storage.remove(tmp_path / "folder")


def test_leftovers_of_the_dead_are_removed_and_of_the_living_kept(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mine, living = (f".{name}.{HOST}-{pid}.tmp" for name, pid in (("a.pth", os.getpid()), ("b.pth", other.pid)))
        dead = f".c.pth.{HOST}-{2**22 + 1}.tmp"  # above the largest pid of Linux
        elsewhere = [f".d.pth.x{HOST}-{2**22 + 1}.tmp", ".e.pth.other-1.tmp", ".hidden.tmp", "a.tmp"]
        for name in [mine, living, dead, *elsewhere]:
            (tmp_path / name).touch()
        storage.remove_leftovers(tmp_path)
        assert contents(tmp_path).keys() == {mine, living, *elsewhere}
        other.communicate(b"\n")
    storage.remove_leftovers(tmp_path)
    assert contents(tmp_path).keys() == {mine, *elsewhere}


def test_what_atomic_write_leaves_behind_is_a_leftover(tmp_path):
    """A killed process: its temporary file is hidden from every reader, and the next run removes it."""

    def die_while_writing():
        with storage.atomic_write(tmp_path / "a.pth") as file:
            file.write(b"half")
            file.flush()
            os._exit(1)

    forked(die_while_writing, Path(os.devnull)).join()
    (name,) = contents(tmp_path)
    assert name.startswith(f".a.pth.{HOST}-")
    with pytest.raises(InputError, match=r"no \*.pth file"):
        storage.list_ids(tmp_path, ".pth")
    storage.remove_leftovers(tmp_path.parent)
    assert contents(tmp_path).keys() == {name}
    storage.remove_leftovers(tmp_path.parent, below=True)
    assert contents(tmp_path) == {}


# --- bytes ----------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just("k"),
    lambda values: st.lists(values, max_size=3) | st.tuples(values, values) | st.dictionaries(st.text(), values),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["k", "id", "file", "cpu", "storage"]), plain))
@example({"id": "cpu", "k": "storage", "file": ("FloatStorage", (), [], {}, ())})  # words of torch's own
def test_equal_records_give_equal_bytes(tmp_path_factory, record):
    """However they came about: here one is made of pieces that are shared, the other of pieces of its own."""
    folder = tmp_path_factory.mktemp("bytes")
    text = "".join(["le", "mon"])
    first = {**record, "text": text, "again": text, "pair": (text, text), "tensor": torch.ones(2, 3)}
    second = pickle.loads(pickle.dumps(copy.deepcopy(record)))
    second |= {"text": "".join(["lem", "on"]), "again": "".join(["l", "emon"]), "pair": ("lemon", "".join(list(text)))}
    second["tensor"] = torch.ones(4, 3)[:2].clone()
    assert first.keys() == second.keys()
    storage.save_record(folder / "first.pth", first)
    storage.save_record(folder / "second.pth", second)
    assert (folder / "first.pth").read_bytes() == (folder / "second.pth").read_bytes()
    loaded = torch.load(folder / "first.pth", weights_only=True)
    assert torch.equal(loaded.pop("tensor"), first.pop("tensor"))
    assert loaded == first


def test_equal_bytes_in_processes_with_other_hash_seeds(tmp_path):
    code = """
from spectralseg.files.storage import save_record
names = {"a", "b", "c", "d"}
save_record(PATH, {"k": torch.arange(6.).view(1, 2, 3), "names": sorted(names), "shape": (1, 3, 2, 2)})
"""
    exec(code, {"PATH": tmp_path / "here.pth", "torch": torch})
    code = f"import torch\nPATH = {str(tmp_path / 'there.pth')!r}\n{code}"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    assert run_command([sys.executable, "-c", code], env=environment(PYTHONHASHSEED=seed)).returncode == 0
    assert (tmp_path / "here.pth").read_bytes() == (tmp_path / "there.pth").read_bytes()


def test_a_view_does_not_drag_its_parent_along(tmp_path):
    parent = torch.randn(1000, 50)
    view = parent[3:4, ::2]
    storage.save_record(tmp_path / "a.pth", {"k": storage.compact(view)})
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        (size,) = (info.file_size for info in file.infolist() if "/data/" in info.filename)
    assert size == 25 * 4
    assert torch.equal(torch.load(tmp_path / "a.pth", weights_only=True)["k"], view)
    compact = storage.compact(parent)
    assert compact.data_ptr() != parent.data_ptr()
    assert torch.equal(compact, parent)


# --- reading --------------------------------------------------------------------------------------------------------


def test_our_records_come_back(tmp_path):
    record = features_record()
    storage.save_record(tmp_path / "a.pth", record)
    torch.load(tmp_path / "a.pth", weights_only=True)
    loaded = records.load_features(tmp_path / "a.pth")
    assert torch.equal(loaded.pop("k"), record.pop("k"))
    assert loaded == record


@pytest.mark.parametrize("wrapped", [False, True], ids=["str", "batch of one"])
def test_features_of_the_published_code(wrapped, tmp_path):
    """Its DataLoader makes tensors of indices; ``file`` and ``id`` are texts, or lists where they were not unpacked."""
    file, image_id = (["x/a.jpg"], ["a"]) if wrapped else ("x/a.jpg", "a")
    record = features_record(indices=torch.tensor(3), file=file, id=image_id, model_name="dino_vits16")
    record["shape"] = torch.Size((1, 3, 33, 50))
    torch.save(record, tmp_path / "a.pth")
    loaded = records.load_features(tmp_path / "a.pth")
    assert torch.equal(loaded.pop("k"), record["k"])
    assert loaded == {
        "indices": 3,
        "file": "x/a.jpg",
        "id": "a",
        "model_name": "dino_vits16",
        "patch_size": 16,
        "shape": (1, 3, 33, 50),
    }
    assert type(loaded["indices"]) is int


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigenvectors_of_the_published_code(dtype, tmp_path):
    """Eigenvalues as a NumPy array for the affinities; no other field than these two."""
    values, vectors = np.array([0.0, 0.25, 0.5], dtype=dtype), torch.eye(3, 6)
    torch.save({"eigenvalues": values, "eigenvectors": vectors}, tmp_path / "b.c.pth")
    loaded = records.load_eigs(tmp_path / "b.c.pth")
    assert loaded["eigenvalues"].dtype == loaded["eigenvectors"].dtype == torch.float32
    assert loaded["eigenvalues"].tolist() == [0.0, 0.25, 0.5]
    assert torch.equal(loaded["eigenvectors"], vectors)
    assert loaded["id"] == "b.c"


def test_eigenvalues_that_do_not_fit(tmp_path):
    torch.save({"eigenvalues": torch.zeros(2), "eigenvectors": torch.eye(3, 6)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a.pth: eigenvectors of shape \(3, 6\) do not fit 2 eigenvalues"):
        records.load_eigs(tmp_path / "a.pth")


def test_foreign_code_is_not_executed(tmp_path):
    trace = tmp_path / "trace"
    torch.save(features_record(k=Trap(trace)), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(features_record(k=Trap(trace)), protocol=2))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            records.load_features(tmp_path / name)
    assert not trace.exists()
    pickle.loads((tmp_path / "b.pth").read_bytes())
    assert trace.exists()  # so the file was a trap indeed


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def tensor_of(count: int, offset: int, side: int, step: int) -> bytes:
    """A tensor (side,) of a storage that is said to have ``count`` numbers; the file has 4."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpu" + number(count) + b"tQ"
    sizes = number(offset) + number(side) + b"\x85" + number(step) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + sizes + b"\x89}tR"


def doubled(pair: bytes, first: bytes) -> bytes:
    """A value that holds another twice, which holds another twice, ..., 40 times."""
    return first + b"".join(pair % {b"old": i, b"new": i + 1} for i in range(40))


HOSTILE = {
    "lists": (doubled(b"]q%(new)c(h%(old)ch%(old)ce", b"]q\0"), "lie in one another"),
    "tuples": (b"}" + doubled(b"h%(old)c\x86q%(new)c", b")q\0") + b"Ns", "lie in one another"),
    "900 tuples": (b")" + b"\x85" * 900, "lie in one another"),
    "900 dicts": (b"}K\1" * 900 + b"N" + b"s" * 900, "lie in one another"),
    "gigabytes": (b"c__builtin__\nbytearray\n" + number(1 << 40) + b"\x85R", "needs builtins.bytearray"),
    "numbers": (b"ctorch\nFloatTensor\n" + number(1 << 40) + b"\x85R", "needs torch.FloatTensor"),
    "punycode": (b"c_codecs\nencode\nX\1\0\0\0aX\x08\0\0\0punycode\x86R", "bytes are damaged"),
    "attributes": (b"ccollections\nOrderedDict\n)RK\5b", "TypeError"),
    "expanded": (tensor_of(4, 0, 1 << 40, 0), "larger than what it holds"),
    "beyond": (tensor_of(4, 1, 4, 1), "larger than what it holds"),
    "longer": (tensor_of(8, 0, 8, 1), "data/0 is missing or has another length"),
    "negative": (tensor_of(4, 0, -4, 1), "tensors are damaged"),
    "changed": (tensor_of(4, 0, 4, 1) + b")b", "changes a tensor"),
}


def write_pickle(path, instructions: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in {"data.pkl": b"\x80\2" + instructions + b".", "version": b"3", "data/0": bytes(16)}.items():
            file.writestr(f"a/{name}", data)


@pytest.mark.parametrize("name", HOSTILE)
def test_content_without_bounds_is_refused(name, tmp_path):
    instructions, reason = HOSTILE[name]
    write_pickle(tmp_path / "a.pth", instructions)
    with pytest.raises(
        InputError, match=rf"a\.pth cannot be read \(.*{reason}.*\); delete it and run its stage again$"
    ):
        storage.load_pth(tmp_path / "a.pth")


def test_content_that_only_looks_hostile(tmp_path):
    """Memory for 2^31 values that are noted; names that hide a dict's methods; a whole tensor."""
    hidden = b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsK\5sb"
    for instructions, content in ((b"]r\0\0\0\x80", []), (hidden, {}), (tensor_of(4, 1, 3, 1), torch.zeros(3))):
        write_pickle(tmp_path / "a.pth", instructions)
        assert str(storage.load_pth(tmp_path / "a.pth")) == str(content)
    write_pickle(tmp_path / "a.pth", b"]", zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="such as torch.save never writes"):
        storage.load_pth(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.array([True]), np.float32(2.5)])
def test_arrays_of_numbers_are_tensors(array, zipped, tmp_path):
    torch.save({"x": array}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert np.array_equal(storage.load_record(tmp_path / "a.pth")["x"], array)
    for other in (np.array([{}]), np.zeros(2, ">f8"), np.array(["x"])):
        torch.save({"x": other}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="has a NumPy array of "):
            storage.load_record(tmp_path / "a.pth")


def test_a_file_cut_anywhere_is_an_error_that_names_it(tmp_path):
    storage.save_record(tmp_path / "a.pth", features_record())
    whole = (tmp_path / "a.pth").read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.pth").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.pth cannot be read .*run its stage again$") as error:
            records.load_features(tmp_path / "a.pth")
        assert "\n" not in str(error.value)


def test_missing_files_and_fields_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file: .*a.pth"):
        records.load_features(tmp_path / "a.pth")
    torch.save({"k": torch.zeros(1), "shape": (1, 3, 2, 2)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a.pth has no field 'patch_size' \(it has: id, k, shape\)"):
        records.load_features(tmp_path / "a.pth")
    with pytest.raises(InputError, match="a.pth has no field 'eigenvalues'"):
        records.load_eigs(tmp_path / "a.pth")
    with pytest.raises(InputError, match="no such folder: .*/absent"):
        storage.list_ids(tmp_path / "absent", ".pth")


def test_ids_of_a_folder(tmp_path):
    for name in ("b.pth", "a.x.pth", ".c.pth.host-1.tmp", ".d.pth", "stage.json", "e.png"):
        (tmp_path / name).touch()
    assert storage.list_ids(tmp_path, ".pth") == ["a.x", "b"]
