"""The network's builder: found by name, and every way in which it can fail said in a sentence."""

import sys

import pytest
from torch import nn

from lib.report.builder import BuilderProblem, builder

MODULE = """
from torch import nn
def build(width=4):
    return nn.Sequential(nn.Linear(3, width))
def fails():
    raise KeyError("no weights here")
def number():
    return 3
not_callable = 3
class Zoo:
    @staticmethod
    def small():
        return nn.Linear(2, 2)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mynets_of_a_user.py").write_text(MODULE)
    (tmp_path / "broken_of_a_user.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "raising_of_a_user.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    for name in list(sys.modules):
        if name.endswith("_of_a_user"):
            del sys.modules[name]


def test_a_function_of_the_current_directory(here):
    assert builder("mynets_of_a_user:build")()[0].out_features == 4
    assert builder("mynets_of_a_user:build", '{"width": 7}')()[0].out_features == 7
    assert isinstance(builder("mynets_of_a_user:Zoo.small")(), nn.Linear)


def test_torchvision_beside_any_torch():
    net = builder("torchvision.models:resnet18", '{"num_classes": 10}')()
    assert net.fc.out_features == 10


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        ("mynets_of_a_user", "{}", "write module:function"),
        ("mynets_of_a_user:", "{}", "write module:function"),
        ("no_module_of_this_name:build", "{}", "there is no module 'no_module_of_this_name'"),
        ("torch.no_such_part:build", "{}", "there is no module 'torch.no_such_part'"),
        ("broken_of_a_user:build", "{}", "needs 'a_package_that_is_not_there'"),
        ("raising_of_a_user:build", "{}", "raised ZeroDivisionError"),
        ("mynets_of_a_user:biuld", "{}", "has no 'biuld' (did you mean build?)"),
        ("mynets_of_a_user:not_callable", "{}", "is a int, no function"),
        ("mynets_of_a_user:fails", "{}", "raised KeyError"),
        ("mynets_of_a_user:number", "{}", "returned a int"),
        ("mynets_of_a_user:build", '{"depth": 7}', "raised TypeError"),
        ("mynets_of_a_user:build", "{width: 7}", "is no JSON"),
        ("mynets_of_a_user:build", "[7]", "is no JSON object"),
    ],
)
def test_what_is_wrong_is_said(here, spec, arguments, said):
    with pytest.raises(BuilderProblem) as caught:
        builder(spec, arguments)
    assert said in str(caught.value)
