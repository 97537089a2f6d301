"""torchvision imports on every build, quietly, and its absent operators refuse with a sentence.

Each case runs in a fresh interpreter: what is tested is the first import.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from lib.torchvision_guard import import_torchvision, stubbed

MISMATCHED = """
try:
    import torchvision
    print("matched")
except RuntimeError:
    print("mismatched")
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def build() -> str:
    return python(MISMATCHED).strip()


def test_datasets_transforms_and_models_work(build):
    code = """
from lib.torchvision_guard import import_torchvision, stubbed
torchvision = import_torchvision()
assert import_torchvision() is torchvision
import torch
from torchvision import datasets, models, transforms
from torchvision.transforms import v2
assert datasets.MNIST and v2.RandomCrop
image = transforms.Compose([transforms.Resize(8), transforms.Normalize([0.5], [2.0])])(torch.ones(1, 16, 16))
assert image.shape == (1, 8, 8) and torch.allclose(image, torch.full_like(image, 0.25))
with torch.no_grad():
    print(tuple(models.resnet18(weights=None).eval()(torch.zeros(2, 3, 32, 32)).shape), stubbed())
"""
    shape, _, stubs = python(code).strip().rpartition(" (")
    assert shape == "(2, 1000)"
    assert ("nms" in stubs) == (build == "mismatched")


def test_it_mends_after_a_failed_import():
    code = """
try:
    import torchvision
except RuntimeError:
    pass
from lib.torchvision_guard import import_torchvision
print(import_torchvision().models.resnet18.__name__)
"""
    assert python(code).strip() == "resnet18"


def test_a_stub_refuses_with_the_reason(build):
    if build == "matched":
        pytest.skip("torchvision matches this torch, so there is no stub to call")
    code = """
import torch
from lib.torchvision_guard import import_torchvision
import_torchvision()
for name in ("nms", "qnms"):
    try:
        getattr(torch.ops.torchvision, name)(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except RuntimeError as error:
        print(error)
"""
    sentences = python(code).strip().splitlines()
    assert len(sentences) == 2
    assert "torchvision::nms was called" in sentences[0]
    assert "torchvision::qnms was called" in sentences[1]
    assert "install a torchvision built for it" in sentences[0]


def test_operators_already_there_are_left_alone():
    code = """
import torch
owner = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    owner.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from lib.torchvision_guard import import_torchvision, stubbed
import_torchvision()
print(stubbed())
"""
    assert python(code).strip() == "()"


def test_operators_that_load_are_not_stubbed():
    """A build that matches brings its operators with its library: that library is loaded before anything is declared."""
    code = """
import torch
owner = torch.library.Library("torchvision", "FRAGMENT")
def load(path):
    assert path.name.startswith("_C"), path
    for name in ("nms", "qnms"):
        owner.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
whole, torch.ops.load_library = torch.ops.load_library, load
from lib import torchvision_guard
real, torchvision_guard._load_operators = torchvision_guard._load_operators, lambda folder: (real(folder), restore())
def restore():
    torch.ops.load_library = whole
torchvision_guard.import_torchvision()
print(torchvision_guard.stubbed())
"""
    assert python(code).strip() == "()"


def test_it_works_in_a_process_that_runs_on(build):
    """Here, under the tests' own type checking, and after whatever other tests imported."""
    assert import_torchvision().models.resnet18
    assert set(stubbed()) <= {"nms", "qnms"}
    assert bool(stubbed()) == (build == "mismatched")


def test_importing_the_guard_imports_no_torchvision():
    code = "import sys, lib.torchvision_guard; print('torchvision' in sys.modules)"
    assert python(code).strip() == "False"
