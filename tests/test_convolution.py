"""Hand-written passes of convolutional populations against torch.func's, in float64; bits that ignore neighbours.

What holds is in the names, as in test_population.py: "bits" are those of one member on one CPU build, whatever the
population, chunk or thread count; "tolerance" is 1e-10 in float64 after a step, against the generic path.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib.networks import optumnist
from lib.population import Recipe, initial, train, training
from lib.population.convolution import Convolution
from lib.population.vmapped import Vmapped


def lenet():
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2), nn.Tanh()),
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 3))),
        *(nn.Flatten(), nn.Linear(32, 5), nn.Tanh(), nn.Identity(), nn.Linear(5, 3)),
    )


def strided():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, stride=2, dilation=2, groups=2), nn.Tanh()),
        nn.Sequential(nn.Conv2d(4, 6, 2, stride=(1, 2), groups=2, padding=1, bias=False), nn.ReLU()),
        *(nn.Conv2d(6, 4, 3, padding="same"), nn.Flatten(), nn.Linear(60, 3, bias=False)),
    )


def plain():
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)
    )


NETS = {
    "optumnist": (optumnist, (1, 28, 28)),
    "lenet": (lenet, (2, 16, 13)),
    "strided": (strided, (2, 11, 12)),
    "plain": (plain, (1, 6, 5)),
}


def problem(shape, outputs, n=40, loss="cross_entropy", dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    if loss == "cross_entropy":
        return x, torch.randint(0, outputs, (n,), generator=generator)
    return x, (torch.randn(n, outputs, generator=generator) > 0).to(dtype)


def steps_of(net, shape, loss, batch, members=3, background=False):
    """(names, gradients, losses) of one batch by hand and by torch.func."""
    net = net.double()
    model = Convolution.recognise(net, loss, shape)
    x, y = problem(shape, model.outputs, loss=loss)
    if background:
        x.clamp_min_(1.0)
    generic = Vmapped(net, loss, 0, x, torch.device("cpu"))
    params, y = initial(net, members, 0), y if loss == "cross_entropy" else y.double()
    rows = torch.stack([torch.arange(len(x)).roll(7 * i)[:batch] for i in range(members)])
    theirs = generic.step(generic.pack(params), batch)
    slow, values = theirs.gradients(generic.table(x), y, rows, True, torch.arange(members), 0)
    ours, table = model.step(model.pack(params), batch), model.table(x)
    ours.gradients(table, y, rows.flip(0), True)  # arrays that were used once must not show
    fast, quick = ours.gradients(table, y, rows, True)
    cut = model.step(model.pack(params), batch).gradients(images_of(model, x), y, rows, True)
    slow = dict(zip(generic.names, slow, strict=True))
    return model.names, fast, [slow[name] for name in model.names], quick, values, cut


def images_of(model, x):
    """The table as an accelerator holds it: images, padded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib.population.convolution.TABLE", 0)
        table = model.table(x)
    assert table.ndim == 4
    return table


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_torch_funcs_within_tolerance(name, loss, background):
    """On noise, and on images whose flat background makes many pooling windows tie."""
    make, shape = NETS[name]
    names, fast, slow, quick, values, cut = steps_of(make(), shape, loss, 16, background=background)
    torch.testing.assert_close(quick, values, rtol=1e-10, atol=1e-12)
    for what, ours, theirs, other in zip(names, fast, slow, cut[0], strict=True):
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=lambda m, w=what: f"{w}: {m}")
        assert torch.equal(ours, other), what


@pytest.mark.parametrize("name", NETS)
def test_members_agree_with_the_generic_path_within_tolerance_after_one_step(name):
    make, shape = NETS[name]
    net = make().double()
    x, y = problem(shape, 3 if name != "plain" else 2)
    recipe = Recipe(lr=0.1, batch_size=len(x), epochs=1, weight_decay=0.01)
    fast, slow = (train(net, x, y, recipe, members=3, seed=1, fast=fast) for fast in (True, False))
    for key, tensor in slow.params.items():
        torch.testing.assert_close(fast.params[key], tensor, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fast.loss, slow.loss, rtol=1e-10, atol=0)
    assert list(fast.params) == list(slow.params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETS)
def test_bits_of_a_member_do_not_depend_on_neighbours_chunks_and_threads(name, dtype, monkeypatch):
    make, shape = NETS[name]
    net = make().to(dtype)
    x, y = problem(shape, 3 if name != "plain" else 2, dtype=dtype)
    recipe = Recipe(lr=0.1, batch_size=16, epochs=2, momentum=0.5)  # 16, 16 and 8 examples
    everyone = train(net, x, y, recipe, members=21, seed=3)
    before = torch.get_num_threads()
    try:
        for cache, threads, members in ((1, 1, [5]), (1, 2, [17, 2, 8]), (1 << 30, 1, range(20, 1, -3))):
            monkeypatch.setattr(training, "CACHE", cache)
            torch.set_num_threads(threads)
            members = torch.tensor(list(members))
            some, same = train(net, x, y, recipe, members=members, seed=3), everyone.where(members)
            for key, tensor in some.params.items():
                assert torch.equal(tensor, same.params[key]), (key, cache, threads)
            assert torch.equal(some.loss, same.loss)
    finally:
        torch.set_num_threads(before)


def test_whole_trainings_agree_with_the_generic_path():
    """Rounding grows along a training: in float64 it stays far below what tells two members apart."""
    net = optumnist().double()
    x, _ = problem((1, 28, 28), 10, n=60)
    y = (x[:, 0, 3:9].mean(dim=(1, 2)) > 0).long()
    recipe = Recipe(lr=0.2, batch_size=20, epochs=4, optimiser="adam")
    fast, slow = (train(net, x, y, recipe, members=8, seed=0, fast=fast) for fast in (True, False))
    torch.testing.assert_close(fast.loss, slow.loss, rtol=1e-6, atol=0)
    assert float(slow.loss.std()) > 1e-3


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    net, recipe = lenet(), Recipe(lr=0.1, batch_size=16, epochs=3, momentum=0.9)
    x, y = problem((2, 16, 13), 3, dtype=torch.float32)
    whole = train(net, x, y, recipe, members=4, seed=2)
    store = training.archive.store

    def store_and_stop(*arguments, **options):
        store(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.archive, "store", store_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(net, x, y, recipe, members=4, seed=2, checkpoint=tmp_path / "run", every=0)
    monkeypatch.setattr(training.archive, "store", store)
    again = train(net, x, y, recipe, members=4, seed=2, checkpoint=tmp_path / "run", every=0)
    for key, tensor in whole.params.items():
        assert torch.equal(again.params[key], tensor), key


def test_divergence_is_traced_to_the_same_step():
    net = lenet()
    x, y = problem((2, 16, 13), 3, loss="mse", dtype=torch.float32)
    recipe = Recipe(lr=50.0, batch_size=20, epochs=6, loss="mse")
    fast, slow = (train(net, x, y, recipe, members=6, seed=1, fast=fast) for fast in (True, False))
    assert bool((slow.diverged_at >= 0).any())
    assert torch.equal(fast.diverged_at, slow.diverged_at)
    assert bool(torch.cat([tensor.flatten() for tensor in fast.params.values()]).isfinite().all())


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.Flatten(), nn.Linear(32, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(18, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(31, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 7), nn.Flatten(), nn.Linear(2, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(32, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(72, 3)),
    ],
)  # fmt: skip
def test_what_is_not_of_this_form_takes_the_generic_path(net):
    assert Convolution.recognise(net, "cross_entropy", (1, 6, 6)) is None
