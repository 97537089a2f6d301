"""A stack of trainings against its runs one by one and against a plain loop; what a stream's runs share and what they do not."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.randomness import integers, normal, permutation
from lib.unit_norm import STEPS, BoldDriver, Examples, ExponentialDecay, Network, UnitNormSGD, train, training
from lib.unit_norm.network import evaluate
from lib.unit_norm.training import Trained

DOUBLE = torch.float64
SEED, N, BATCH, EPOCHS = 5, 23, 6, 3  # three batches an epoch, and five examples that each epoch drops
NETS = {
    "norm": Network((4, 6, 3)),
    "norm, pools, deeper": Network((4, 6, 8, 3), pool=2),
    "free": Network((4, 6, 3), norm=False),
}
STREAMS = torch.tensor([3, 0])
RATES = torch.tensor([[0.1, 0.5, 0.02], [0.3, 0.05, 0.7]], dtype=DOUBLE)
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
each_method = pytest.mark.parametrize("method", STEPS)


def draw(name: str, *shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return normal(53, torch.arange(1), name, 0, shape, DOUBLE)[0].to(dtype)


@functools.cache
def table(dtype: torch.dtype = DOUBLE, streams: int = 2, n: int = N) -> Examples:
    """40 examples, of which every stream has n in an order of its own."""
    y = integers(53, torch.arange(1), "y", 0, 3, (40,))[0]
    x = draw("x", 40, 4, dtype=dtype) + F.one_hot(y, 4)
    return Examples(x, y, permutation(53, torch.arange(streams), "rows", 0, 40)[:, :n].contiguous())


def of_stream(examples: Examples, s: int) -> Examples:
    return dataclasses.replace(examples, rows=examples.rows[s : s + 1])


def starts(net: Network, runs: int = 3) -> list[Tensor]:
    """Rows of many lengths, for every run its own."""
    return [
        draw(f"start{i}", 2, runs, n, k) / k**0.5 * 10 ** (0.3 * draw(f"length{i}", 2, runs, n, 1))
        for i, (n, k) in enumerate(net.shapes)
    ]


def fit(net: Network, method: str = "unit norm", **settings) -> Trained:
    usual = {
        "examples": table(),
        "rates": RATES,
        "seed": SEED,
        "streams": STREAMS,
        "epochs": EPOCHS,
        "batch": BATCH,
    }
    return train(net, method, **(usual | settings))


def close(found: Tensor, right: Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == right.shape
    assert (found - right).abs().max() <= tolerance * (1 + right.abs().max())


def series(run: Trained) -> dict[str, Tensor]:
    """All that a training returns, runs in the first two axes."""
    of_epochs = {"costs": run.costs, "rates": run.rates, "effective": run.effective}
    of_epochs |= {f"errors {n}": e for n, e in run.errors.items()} | {
        f"losses {n}": e for n, e in run.losses.items()
    }
    found = {name: value.movedim(0, 2) for name, value in of_epochs.items()}
    kinds = {"weights": run.weights, "means": run.means, "variances": run.variances}
    return found | {f"{kind}{i}": t for kind, tensors in kinds.items() for i, t in enumerate(tensors)}


def same(found: Trained, right: Trained, tolerance: float = 1e-10) -> None:
    a, b = series(found), series(right)
    assert a.keys() == b.keys()
    for name in a:
        close(a[name], b[name], tolerance)


# ----------------------------------------------------------------------------------------- run by run, loop by loop


@each_net
@each_method
def test_a_stack_is_its_runs_one_by_one(net, method):
    """Whatever else is in it: order, rates, starts, schedule and watched sets belong to the run."""
    rest, begin, watched = RATES.flip(0), starts(net), {"mine": table(), "others": table(n=17)}
    settings = {"schedule": BoldDriver()}
    whole = fit(net, method, classifier_rates=rest, start=begin, watch=watched, **settings)
    together = series(whole)
    assert len(together) == 7 + len(net.shapes) + 2 * (len(net.shapes) - 1)
    for s in range(2):
        for r in range(3):
            alone = fit(
                net, method, examples=of_stream(table(), s), rates=RATES[s : s + 1, r : r + 1], streams=STREAMS[s : s + 1],
                classifier_rates=rest[s : s + 1, r : r + 1], start=[w[s : s + 1, r : r + 1] for w in begin],
                watch={name: of_stream(e, s) for name, e in watched.items()}, **settings,
            )  # fmt: skip
            for name, value in series(alone).items():
                close(value[0, 0], together[name][s, r])


def loop(net: Network, s: int, r: int, make, start: list[Tensor]) -> tuple[nn.Sequential, list[float]]:
    """A training as torch's users write it, on the same examples in the same order."""
    module, examples = net.module().to(DOUBLE), of_stream(table(), s)
    dense = [layer for layer in module if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, w in zip(dense, start, strict=True):
            layer.weight.copy_(w[s, min(r, w.shape[1] - 1)])
    optimiser, costs = make([layer.weight for layer in dense]), []
    x, y = examples.inputs[examples.rows[0]], examples.targets[examples.rows[0]]
    for epoch in range(EPOCHS):
        order = permutation(SEED, STREAMS[s : s + 1], "order", epoch, N)[0]
        values = []
        for i in range(N // BATCH):
            chosen = order[BATCH * i : BATCH * (i + 1)]
            optimiser.zero_grad()
            loss = F.cross_entropy(module(x[chosen]), y[chosen])
            loss.backward()
            optimiser.step()
            values.append(float(loss.detach()))
        costs.append(sum(values) / len(values))
    return module, costs


@each_net
@pytest.mark.parametrize("begin", ["given", "protocol"])
def test_unit_norm_is_a_plain_loop_with_the_optimiser(net, begin):
    start = starts(net) if begin == "given" else net.initial(SEED, STREAMS, DOUBLE)
    rest = RATES.flip(1)
    stack = fit(net, classifier_rates=rest, start=start if begin == "given" else None, watch={"all": table()})
    for s in range(2):
        for r in range(3):
            module, costs = loop(
                net, s, r,
                lambda w, s=s, r=r: UnitNormSGD([
                    {"params": w[:-1], "lr": float(RATES[s, r])},
                    {"params": w[-1:], "lr": float(rest[s, r]), "unit_norm": False},
                ]),
                start,
            )  # fmt: skip
            close(stack.costs[:, s, r], torch.tensor(costs, dtype=DOUBLE))
            for found, layer in zip(
                stack.weights, (m for m in module if isinstance(m, nn.Linear)), strict=True
            ):
                close(found[s, r], layer.weight.detach())
            for m, v, layer in zip(
                stack.means,
                stack.variances,
                (m for m in module if isinstance(m, nn.BatchNorm1d)),
                strict=False,
            ):
                close(m[s, r], layer.running_mean)
                close(v[s, r], layer.running_var)
            mine = of_stream(table(), s)
            x, y = mine.inputs[mine.rows[0]], mine.targets[mine.rows[0]]
            logits = module.eval()(x).detach()
            close(stack.losses["all"][-1, s, r], F.cross_entropy(logits, y))
            close(stack.errors["all"][-1, s, r], (logits.argmax(1) != y).double().mean())


@each_net
def test_sgd_is_a_plain_loop_with_torchs_own(net):
    start, stack = starts(net), fit(net, "SGD", start=starts(net))
    module, costs = loop(net, 1, 2, lambda w: torch.optim.SGD(w, lr=float(RATES[1, 2])), start)
    close(stack.costs[:, 1, 2], torch.tensor(costs, dtype=DOUBLE))
    for found, layer in zip(stack.weights, (m for m in module if isinstance(m, nn.Linear)), strict=True):
        close(found[1, 2], layer.weight.detach())


# ------------------------------------------------------------------------------------------- what runs have in common


def test_runs_of_a_stream_see_the_same_batches_and_streams_their_own():
    """Equal rates and starts: equal runs within a stream; between streams neither start nor order is shared."""
    equal = fit(NETS["norm"], rates=torch.full((2, 3), 0.2, dtype=DOUBLE))
    for name, value in series(equal).items():
        close(value[:, 1:], value[:, :1].expand_as(value[:, 1:]), 1e-13)
        if name not in ("rates", "effective"):
            assert not torch.allclose(value[0], value[1])
    rows = table().rows[:1].expand(2, -1).contiguous()
    common = dataclasses.replace(table(), rows=rows)
    one = [w[:1].expand(2, -1, -1, -1) for w in NETS["norm"].initial(SEED, STREAMS, DOUBLE)]
    other = fit(NETS["norm"], examples=common, start=one, rates=torch.full((2, 3), 0.2, dtype=DOUBLE))
    assert not torch.allclose(other.costs[:, 0], other.costs[:, 1])


def test_a_stream_does_not_depend_on_its_place_nor_on_the_number_of_epochs():
    turned = fit(
        NETS["norm"],
        examples=dataclasses.replace(table(), rows=table().rows.flip(0)),
        streams=STREAMS.flip(0),
        rates=RATES.flip(0),
    )
    right = fit(NETS["norm"])
    for name, value in series(turned).items():
        close(value.flip(0), series(right)[name])
    close(fit(NETS["norm"], epochs=2).costs, right.costs[:2])
    assert not torch.allclose(fit(NETS["norm"], seed=SEED + 1).costs, right.costs)


def test_every_epoch_has_an_order_of_its_own_and_drops_what_fills_no_batch(monkeypatch):
    seen = []
    gather = Examples.gather
    monkeypatch.setattr(
        Examples, "gather", lambda self, s, chosen: seen.append(chosen) or gather(self, s, chosen)
    )
    monkeypatch.setattr(training, "CHUNK", 1 << 30)
    fit(NETS["norm"], examples=of_stream(table(), 0), rates=RATES[:1], streams=STREAMS[:1])
    assert [tuple(chosen.shape) for chosen in seen] == [(1, BATCH)] * (N // BATCH * EPOCHS)
    epochs = torch.cat(seen, 1).view(EPOCHS, -1)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == N // BATCH * BATCH
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == EPOCHS
    assert N // BATCH * BATCH < len(set(epochs.flatten().tolist())) <= N


@each_method
@pytest.mark.parametrize("fit_runs", [1, 2, 3, 6])
def test_chunks_change_nothing(method, fit_runs, monkeypatch):
    net = NETS["norm, pools, deeper"]
    settings = {"watch": {"all": table()}, "schedule": BoldDriver(), "start": starts(net)}
    right, sizes = fit(net, method, **settings), []
    monkeypatch.setattr(training, "CHUNK", fit_runs * 2 * 8 * net.numbers)
    cut = training._chunks
    monkeypatch.setattr(training, "_chunks", lambda *a: sizes.extend(cut(*a)) or cut(*a))
    same(fit(net, method, **settings), right)
    covered = torch.zeros(2, 3, dtype=torch.int64)
    for s, r in sizes:
        covered[s, r] += 1
        assert covered[s, r].numel() <= fit_runs
    assert (covered == 1).all()


@pytest.mark.parametrize(("total", "most"), [(1, 1), (7, 3), (6, 3), (5, 9), (100, 32)])
def test_shares_are_nearly_equal(total, most):
    parts = training._shares(total, most)
    sizes = [part.stop - part.start for part in parts]
    assert [i for part in parts for i in range(total)[part]] == list(range(total))
    assert max(sizes) <= min(most, min(sizes) + 1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing_and_are_given_back(threads, monkeypatch):
    net, before = NETS["norm"], torch.get_num_threads()
    monkeypatch.setattr(training, "CHUNK", 2 * 8 * net.numbers)  # a run a chunk, whatever the threads
    right = fit(net, watch={"all": table()})
    try:
        torch.set_num_threads(threads)
        same(fit(net, watch={"all": table()}), right, 1e-12)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_whole_stack_at_once_is_its_chunks(monkeypatch):
    """As on a GPU: one chunk, no pool."""
    net, right = NETS["norm, pools, deeper"], fit(NETS["norm, pools, deeper"])
    monkeypatch.setattr(training, "_chunks", lambda net, size, runs, *_: [(slice(0, size), slice(0, runs))])
    same(fit(net), right)


# ----------------------------------------------------------------------------------------------------- what is told


@each_net
def test_watched_sets_are_evaluated_after_every_epoch(net):
    """On the runs' own rows, in both forms: one table for all streams, and one each."""
    shared = dataclasses.replace(table(), rows=torch.arange(40).expand(2, -1))
    run = fit(net, watch={"own": table(), "shared": shared})
    assert run.errors.keys() == run.losses.keys() == {"own", "shared"}
    for name, examples in {"own": table(), "shared": shared}.items():
        x, y = examples.inputs[examples.rows], examples.targets[examples.rows]
        loss, error = evaluate(net, run.weights, run.means, run.variances, x, y)
        close(run.losses[name][-1], loss)
        close(run.errors[name][-1], error)
        assert run.errors[name].shape == run.losses[name].shape == (EPOCHS, 2, 3)
        assert not torch.allclose(run.losses[name][0], run.losses[name][-1])
    close(fit(net, epochs=1, watch={"own": table()}).losses["own"][0], run.losses["own"][0])
    close(fit(net).costs, run.costs)  # to be watched changes nothing


def test_the_classifier_may_have_rates_of_its_own():
    net, still = NETS["norm"], torch.zeros(2, 3, dtype=DOUBLE)
    start = net.initial(SEED, STREAMS, DOUBLE)
    moved = fit(net, classifier_rates=still)
    assert torch.equal(moved.weights[-1], start[-1].expand(2, 3, -1, -1))
    assert (moved.weights[0] - start[0]).norm() > 0.1
    same(fit(net, classifier_rates=RATES), fit(net))
    rest = fit(net, rates=still, classifier_rates=RATES)
    close(rest.weights[0], start[0].expand(2, 3, -1, -1), 1e-14)
    assert (rest.weights[-1] - start[-1]).norm() > 0.1
    assert (fit(net).weights[-1].norm(dim=3) - 1).abs().max() > 1e-2  # which no method keeps at unit norm


@each_method
def test_filters_are_put_at_unit_norm_and_kept_there_by_two_methods_only(method):
    net, start = NETS["norm, pools, deeper"], starts(NETS["norm, pools, deeper"])
    kept = [w.clone() for w in start]
    run = fit(net, method, start=start)
    off = max(float((w.norm(dim=3) - 1).abs().max()) for w in run.weights[:-1])
    assert (off < 1e-13) == (method in ("unit norm", "normalise after the step"))
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))


def test_a_start_may_be_shared_by_the_runs_of_a_stream():
    net, start = NETS["norm"], NETS["norm"].initial(SEED, STREAMS, DOUBLE)
    same(fit(net, start=start), fit(net))
    same(fit(net, start=[w.expand(2, 3, -1, -1) for w in start]), fit(net))
    assert not torch.allclose(fit(net, start=starts(net)).costs, fit(net).costs)


def test_effective_rates_by_hand():
    """Mean of rate / ‖w‖² after the epoch: the rate itself at unit norm, and falling where lengths grow."""
    net = NETS["norm, pools, deeper"]
    run = fit(net, schedule=ExponentialDecay())
    close(run.effective, run.rates[..., None].expand(-1, -1, -1, 2), 1e-13)
    run = fit(net, "SGD", start=starts(net), schedule=ExponentialDecay())
    for layer in range(2):
        right = (run.rates[-1][..., None] / run.weights[layer].square().sum(3)).mean(2)
        close(run.effective[-1, ..., layer], right)
    plain = fit(net, "SGD", start=starts(net))
    assert (plain.effective.diff(dim=0) < 0).all()


def test_schedules_change_rates_as_told_and_training_follows():
    net = NETS["norm"]
    run = fit(net, schedule=ExponentialDecay(0.5), classifier_rates=RATES.flip(0))
    close(run.rates, torch.stack([RATES, RATES / 2, RATES / 4]), 1e-15)
    first = fit(net, epochs=1)
    close(run.costs[0], fit(net, classifier_rates=RATES.flip(0)).costs[0])
    assert not torch.allclose(run.costs[1:], fit(net, classifier_rates=RATES.flip(0)).costs[1:])
    assert torch.equal(fit(net).rates, RATES.expand(EPOCHS, -1, -1))
    bold = fit(net, epochs=8, rates=3 * RATES, schedule=BoldDriver())
    rose = bold.costs.diff(dim=0) > 0
    assert rose.any()
    assert not rose.all()
    factors = bold.rates[1:] / bold.rates[:-1]
    close(factors[0], torch.ones(2, 3, dtype=DOUBLE), 1e-14)
    right = torch.where(rose[:-1], torch.tensor(0.5, dtype=DOUBLE), torch.tensor(1.1, dtype=DOUBLE))
    close(factors[1:], right, 1e-14)
    close(first.costs[0], fit(net).costs[0])


def test_schedules_change_the_classifiers_rates_too():
    """With filters that stand still only its own rates can make the difference."""
    net, still = NETS["norm"], torch.zeros(2, 3, dtype=DOUBLE)
    constant, falling = (
        fit(net, rates=still, classifier_rates=RATES, schedule=s) for s in (None, ExponentialDecay(0.0))
    )
    close(falling.weights[-1], fit(net, rates=still, classifier_rates=RATES, epochs=1).weights[-1])
    assert not torch.allclose(falling.weights[-1], constant.weights[-1])


@each_net
@each_method
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_run_that_diverges_disturbs_nobody(net, method, dtype):
    """Nor does it warn."""
    wild = RATES.clone()
    wild[0, 1] = 1e30 if dtype == torch.float32 else 1e200
    settings = {
        "examples": table(dtype),
        "epochs": 4,
        "schedule": BoldDriver(),
        "watch": {"all": table(dtype)},
    }
    run, right = (series(fit(net, method, rates=rates, **settings)) for rates in (wild, RATES))
    others = torch.ones(2, 3, dtype=torch.bool)
    others[0, 1] = False
    for name, value in run.items():
        close(value[others], right[name][others], 1e-10 if dtype == DOUBLE else 1e-4)
    assert not torch.allclose(run["costs"][0, 1], right["costs"][0, 1])
    if method == "SGD" and not net.norm:
        assert not run["costs"][0, 1].isfinite().all()
        assert (run["errors all"][0, 1][1:] == 1).all()


def test_it_learns():
    net = Network((4, 16, 16, 3), pool=2)
    for method in STEPS:
        run = fit(net, method, examples=table(torch.float32), epochs=25, rates=torch.full((2, 1), 0.2))
        assert run.costs[-1].max() < 0.5 * run.costs[0].min()
        assert run.costs.dtype == run.weights[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"method": "adam"},
            "method 'adam' is not known: use one of SGD, unit norm, normalise after the step",
        ),
        ({"batch": N + 1}, f"{N} examples fill no batch of {N + 1}: take smaller batches or more examples"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit(NETS["norm"], **settings)
