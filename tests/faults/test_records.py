"""Files whose fields were changed: each is read as before, or refused in one line that names the file."""

import json

import numpy as np
import pytest
import torch

from eagleseg.data.records import features_from_record
from spectralseg.errors import InputError
from spectralseg.files import records
from spectralseg.files.storage import load_json
from spectralseg.running.stage import check_origin, describe
from spectralseg.training.run_folder import restore_optimizer

VALUES = [None, True, -1, 2**70, 0.5, float("nan"), "", "\0", "../x", b"x", [], [[]], {}, [1, 2], {"a": 1}, [[[1]]]]
VALUES += [torch.tensor(float("nan")), torch.zeros(0), torch.zeros(2, 3, 4), torch.ones(2).long(), np.zeros(3)]
BOXES = {"id": "a", "bboxes": [[0, 0, 2, 2]], "bboxes_original_resolution": [[0, 0, 32, 32]], "segment_indices": [1]}
BOXES |= {"features": torch.ones(1, 3), "clusters": torch.tensor([1])}
OF_IMAGE = {"id": "a", "file": "a.png", "shape": (1, 3, 32, 48), "resize": None}
FEATURES = {**OF_IMAGE, "patch_size": 16, "model_name": "lab_hog", "k": torch.rand(1, 6, 4)}
FEATURES["attn_cls"] = torch.rand(2, 6)
EIGS = {**OF_IMAGE, "eigenvalues": torch.arange(3.0), "eigenvectors": torch.rand(3, 6), "grid": (2, 3), "step": 16}
STAGE = {"command": "x", "arguments": {"patch_size": 16, "features": {"patch_size": 16}, "cluster_offset": 1}}
ADAM = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "params": [0]}
STATE = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}


def read_features(path):
    record = records.load_features(path)
    return records.patch_features(record, "attn_cls", path), features_from_record(record, path)


def read_optimizer(path):
    optimizer = torch.optim.Adam([parameter := torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    restore_optimizer(optimizer, records.load_record(path), path)
    parameter.sum().backward()
    optimizer.step()


def read_description(path):
    path.rename(path.with_name("stage.json"))
    describe(path.parent)
    check_origin(path.parent, patch=16, cell=16)


def mutations(content, depth=2):
    """A field after another absent, and of each other value; those of inner records and of lists too."""
    for name in content if isinstance(content, dict) else range(len(content)):
        for value in VALUES:
            changed = content.copy()
            changed[name] = value
            yield changed
        if isinstance(content, dict):
            yield {other: value for other, value in content.items() if other != name}
        if isinstance(content[name], dict | list) and depth:
            for value in mutations(content[name], depth - 1):
                changed = content.copy()
                changed[name] = value
                yield changed


@pytest.mark.parametrize(
    ("read", "content", "refusals"),
    [
        (read_features, FEATURES, 120),
        (records.load_eigs, EIGS, 110),
        (lambda path: records.load_list(path, ["features"]), [BOXES], 200),
        (read_optimizer, {"state": {0: STATE}, "param_groups": [ADAM]}, 150),
        (read_description, STAGE, 60),
    ],
    ids=["features", "eigenvectors", "boxes", "optimizer", "stage.json"],
)
def test_changed_files_are_read_or_refused(read, content, refusals, tmp_path):
    path, said = tmp_path / "a.pth", []
    for changed in [content, *mutations(content)]:
        if content is STAGE:
            path.write_text(json.dumps(changed, default=str))
        else:
            torch.save(changed, path)
        try:
            read(path)
        except InputError as error:
            said.append(str(error))
        assert changed is not content or not said
    assert len(said) >= refusals
    assert all(message.startswith(str(tmp_path)) and "\n" not in message for message in said)


@pytest.mark.parametrize("text", ["[" * 200 + "]" * 200, "{" * 9999, "9" * 5000, "\xff", ""])
def test_json_that_is_none(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"a.json cannot be read .*; delete it if it is damaged$"):
        load_json(tmp_path / "a.json")
