"""The stacked training: its steps rewritten plainly, its fixed points computed exactly, its runs and orders apart from each other."""

import math

import pytest
import torch
from torch.distributions import Gamma, Normal, kl_divergence

from lib import randomness
from lib.matrix_gaussian import training
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.likelihoods import Categorical, Gaussian
from lib.matrix_gaussian.network import Network, prepared
from lib.matrix_gaussian.pseudo_data import LOWEST_LOG_NOISE, PseudoData
from lib.matrix_gaussian.training import Adam, Examples, Schedule, batches, fit, orders
from lib.posteriors.descent import Diverged, Stream

SEED = 991
LAWS = {
    "point": Point(),
    "dropped point": Point(0.3),
    "factorised": Factorised(),
    "rows and columns": RowColumn(),
    "pseudo-data": PseudoData(2),
}
each_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def normal(purpose, *shape):
    return randomness.normal(SEED, torch.arange(1), purpose, 0, shape, torch.float64)[0]


def examples(counts, rows=20, inputs=2, outputs=1, unit=None):
    runs = len(counts)
    unit = torch.ones(runs, outputs).double() if unit is None else unit
    x, y = normal("x", runs, rows, inputs), normal("y", runs, rows, outputs)
    return Examples(x, y, torch.tensor(counts), unit)


def chosen(e, runs):
    return Examples(e.inputs[runs], e.targets[runs], e.counts[runs], e.unit[runs])


# -------------------------------------------------------------------------------------- where training ends (float64)


def linear(n=24, d=2, k=2):
    """One layer's data: inputs as the layer reads them, and targets around a line."""
    x = normal("inputs", 1, n, d)
    a = prepared(x)[0]
    return x, a, a @ (2 * normal("truth", d + 1, k)) + 0.4 * normal("noise", n, k)


def best(a, y, hyper_priors, steps=300):
    """Coordinate ascent on the objective of one factorised layer, each step exact: (mean, variance, q(τ_r), q(τ_c), q(τ))."""
    (n, r), k = a.shape, y.shape[1]
    noise, rows, columns = ([torch.tensor(x).double() for x in (6.0, 6.0)], [1.0, 0.5], [1.0, 0.5])
    for _ in range(steps):
        tau = (noise[0] / noise[1]).expand(k)
        prior = rows[0] / rows[1] * columns[0] / columns[1] if hyper_priors else 1.0
        precision = tau[:, None, None] * a.mT @ a + prior * torch.eye(r).double()
        mean = torch.linalg.solve(precision, (tau * (a.mT @ y)).mT[..., None])[
            ..., 0
        ].mT  # the exact posterior's
        variance = 1 / precision.diagonal(dim1=1, dim2=2).mT
        squares = float((mean.square() + variance).sum())
        miss = (y - a @ mean).square().sum(0) + (a.square() @ variance).sum(0)
        noise = [torch.tensor(6 + n / 2).double(), 6 + miss / 2]
        rows = [1 + r * k / 2, 0.5 + 0.5 * columns[0] / columns[1] * squares]
        columns = [1 + r * k / 2, 0.5 + 0.5 * rows[0] / rows[1] * squares]
    return mean, variance, rows, columns, noise


def objective(a, y, hyper_priors, mean, variance, rows, columns, noise):
    """N times the objective at the best law, by torch's distributions."""
    tau = Gamma(noise[0].expand(y.shape[1]), noise[1])
    mean_log = torch.digamma(tau.concentration) - tau.rate.log()
    miss = (y - a @ mean).square().sum(0) + (a.square() @ variance).sum(0)
    total = 0.5 * (tau.mean * miss + len(y) * (math.log(2 * math.pi) - mean_log)).sum()
    total = total + kl_divergence(tau, Gamma(torch.tensor(6.0).double(), torch.tensor(6.0).double())).sum()
    if not hyper_priors:
        return total + kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0)).sum()
    prior = Gamma(torch.tensor(1.0).double(), torch.tensor(0.5).double())
    for shape, rate in (rows, columns):
        one = Gamma(torch.tensor(shape).double(), torch.tensor(rate).double())
        total = total + kl_divergence(one, prior)
        total = total - 0.5 * mean.numel() * (torch.digamma(one.concentration) - one.rate.log())
    squares = (mean.square() + variance).sum() * rows[0] / rows[1] * columns[0] / columns[1]
    return total + 0.5 * (squares - variance.log().sum() - mean.numel())


def expected(network, flat, x, y):
    """N times the objective of one layer's run, the mean over its noise by two draws at one deviation: the loss is quadratic."""
    n, one, bound = len(y), torch.ones(len(flat), *y.shape).double(), network.bind(flat)
    terms = network.terms(torch.full((len(flat),), n), one[:, 0])
    given = prepared(x).expand(len(flat), -1, -1), y.expand(len(flat), -1, -1)
    sides = [network.slope(bound, *given, {(0, "output"): s * one}, terms)[0] for s in (1.0, -1.0)]
    return n * (sides[0] + sides[1]) / 2 + network.divergence(flat, network.prior(one[:, 0]))


def ended(law, hyper_priors, y, x, runs=12):
    n, k = y.shape
    network = Network.of(law, (x.shape[-1], k), Gaussian(), hyper_priors)
    e = Examples(x, y[None], torch.full((runs,), n), torch.ones(runs, k).double())
    return network, fit(network, e, Schedule(450, n, rate=0.04, average=0.98), seed=SEED)


@pytest.mark.parametrize("hyper_priors", [True, False], ids=["hyper", "fixed"])
def test_a_factorised_layer_ends_at_the_best_law(hyper_priors):
    """Means, deviations and all Gammas, and the objective's optimum, each known by coordinate ascent."""
    x, a, y = linear()
    mean, variance, rows, columns, noise = best(a, y, hyper_priors)
    network, found = ended(Factorised(), hyper_priors, y, x)
    average = found.flat.mean(0, keepdim=True)  # over runs with other noise
    (p,), q = network.parameters(average), network.precisions(average)
    torch.testing.assert_close(p["mean"][0], mean, rtol=0, atol=0.03)
    torch.testing.assert_close(p["log_sd"][0], 0.5 * variance.log(), rtol=0, atol=0.05)
    torch.testing.assert_close(q.mean[0, -2:], noise[0] / noise[1], rtol=0.05, atol=0)
    torch.testing.assert_close(
        q.shape[0, -2:], noise[0].expand(2), rtol=0.3, atol=0
    )  # the objective is flat there
    if hyper_priors:
        wanted = rows[0] / rows[1] * columns[0] / columns[1]
        assert float(q.mean[0, 0] * q.mean[0, 1]) == pytest.approx(wanted, rel=0.1)
    optimum = float(objective(a, y, hyper_priors, mean, variance, rows, columns, noise))
    reached = float(expected(network, average, x, y))
    assert optimum - 1e-9 < reached < optimum + 0.1
    assert (
        float(expected(network, network.start(torch.arange(1), torch.ones(1, 2).double(), SEED), x, y))
        > optimum + 10
    )
    loss = (reached - float(network.divergence(average, network.prior(torch.ones(1, 2).double())))) / len(y)
    assert float(found.loss.mean()) == pytest.approx(loss, rel=0.3)


def test_a_layer_with_one_output_and_rank_one_deviations_ends_there_too():
    """With one column every factorised law has rank one."""
    x, a, y = linear(k=1)
    mean, variance, *_ = best(a, y, False)
    network, found = ended(RowColumn(), False, y, x)
    (p,) = network.parameters(found.flat.mean(0, keepdim=True))
    torch.testing.assert_close(p["mean"][0], mean, rtol=0, atol=0.03)
    torch.testing.assert_close(
        (p["log_row"] + p["log_column"])[0, :, None], 0.5 * variance.log(), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_a_point_ends_at_least_squares_or_at_the_ridge(charge):
    """Charged, the ridge's penalty is 1 / E τ; the noise's own fixed point is known too."""
    x, a, y = linear(k=1)
    tau = 1.0
    for _ in range(200):
        ridge = charge / tau * torch.eye(3).double()
        mean = torch.linalg.solve(a.mT @ a + ridge, a.mT @ y)
        tau = (6 + len(y) / 2) / (6 + float((y - a @ mean).square().sum()) / 2)
    network = Network.of(Point(), (2, 1), Gaussian(), hyper_priors=False, charge=charge)
    e = Examples(x, y[None], torch.tensor([24]), torch.ones(1, 1).double())
    found = fit(network, e, Schedule(450, 24, rate=0.2, average=0.9), seed=SEED)
    q = network.noise_precisions(found.flat)
    close = 1e-4 if charge else 1e-9  # uncharged, the means do not ask for the noise
    torch.testing.assert_close(network.parameters(found.flat)[0]["mean"][0], mean, rtol=0, atol=close)
    assert float(q.mean) == pytest.approx(tau, rel=5e-4)
    assert float(q.shape) == pytest.approx(6 + 24 / 2, rel=0.03)


# ----------------------------------------------------------------------------------------------- the steps themselves


def plainly(network, e, schedule, members, seed, updates):
    """The same training, every run by itself, with torch's Adam: (path of the parameters, losses), (updates, R, ...)."""
    paths, losses = [], []
    for run, member in enumerate(members.tolist()):
        who, n = torch.tensor([member]), int(e.counts[run])
        flat = network.start(who, e.unit[run : run + 1], seed)
        own = flat.clone().requires_grad_()
        adam = torch.optim.Adam([own], lr=schedule.rate)
        terms = network.terms(e.counts[run : run + 1], e.unit[run : run + 1])
        streams = {}
        shapes = {
            (i, name): shape
            for i, law in enumerate(network.laws)
            for name, shape in law.noise_shapes(schedule.batch, *network.sizes(i)).items()
        }
        for i, name in shapes:
            streams[i, name] = Stream(randomness.normal, seed, who, f"noise/{i}/{name}", flat.dtype)
        path, values, rows = [], [], []
        for step in range(updates):
            if len(rows) < schedule.batch:
                epoch = step // (n // schedule.batch)
                rows = randomness.permutation(seed, who, "order", epoch, n)[0].tolist()
            taken, rows = rows[: schedule.batch], rows[schedule.batch :]
            noise = {key: streams[key](step, shapes[key]) for key in shapes}
            x, y = e.inputs[run][taken], e.targets[run][taken]
            value, gradient = network.slope(
                network.bind(own.detach()), prepared(x)[None], y[None], noise, terms
            )
            own.grad = gradient
            adam.step()
            for layer, law in zip(network.parameters(own.detach()), network.laws, strict=True):
                if isinstance(law, PseudoData):
                    layer["log_noise"].clamp_(LOWEST_LOG_NOISE, law.bound)
            path.append(own.detach()[0].clone())
            values.append(value[0])
        paths.append(torch.stack(path))
        losses.append(torch.stack(values))
    return torch.stack(paths, 1), torch.stack(losses, 1)


def averaged(path, beta):
    """Σ β^(t-s) x_s / Σ β^(t-s)."""
    weights = beta ** torch.arange(len(path) - 1, -1, -1).double()
    return torch.einsum("t,t...->...", weights / weights.sum(), path)


@each_law
def test_training_is_adam_on_the_objectives_slope(law):
    """Parameters, looks and losses of runs with other counts, against a plain loop over runs and torch's optimiser."""
    network = Network.of(law, (2, 3, 1), Gaussian())
    e, members, updates = examples([20, 7, 12]), torch.tensor([4, 1 << 33, 0]), 9
    schedule = Schedule(updates, 3, rate=0.01, average=0.9, looks=(1, 6))
    path, values = plainly(network, e, schedule, members, SEED, updates)
    found = fit(network, e, schedule, seed=SEED, members=members)
    # Adam's factors are rounded to float32, whatever the parameters
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found.flat, averaged(path, 0.9), **close)
    torch.testing.assert_close(found.loss, values.mean(0), **close)
    assert list(found.looks) == [1, 6]
    for look in found.looks:
        torch.testing.assert_close(found.looks[look], averaged(path[:look], 0.9), **close)
        assert torch.equal(found.at(look).flat, found.looks[look])
    assert found.at(6).looks == {}
    some = found.select(torch.tensor([2, 0]))
    assert torch.equal(some.flat, found.flat[[2, 0]])
    assert torch.equal(some.looks[6], found.looks[6][[2, 0]])
    assert (some.members.tolist(), some.loss.tolist()) == ([0, 4], found.loss[[2, 0]].tolist())


def test_classes_are_trained_on_in_the_same_way():
    """Labels of the run's own rows, from one set for all runs, with laws that differ from layer to layer."""
    network = Network((2, 3, 3), (PseudoData(2, 0.3, per_entry=True), Point(0.3)), Categorical())
    x, labels = normal("x", 1, 20, 2), (3 * Normal(0.0, 1.0).cdf(normal("labels", 1, 20))).long()
    one = Examples(x, labels, torch.tensor([20, 7]), torch.ones(2, 1).double())
    each = Examples(x.expand(2, -1, -1), labels.expand(2, -1), one.counts, one.unit)
    schedule, members = Schedule(9, 3, rate=0.01, average=0.9), torch.tensor([8, 2])
    path, values = plainly(network, each, schedule, members, SEED, 9)
    for given in (one, each):
        found = fit(network, given, schedule, seed=SEED, members=members)
        torch.testing.assert_close(found.flat, averaged(path, 0.9), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.loss, values.mean(0), rtol=1e-5, atol=1e-6)


def test_the_loss_is_that_of_the_last_thousand_batches():
    """Of a network that stands still, so that all batches can be judged at once."""
    network, e, updates = Network.of(Point(), (2, 1), Gaussian(), hyper_priors=False), examples([5]), 1_030
    found = fit(network, e, Schedule(updates, 2, rate=1e-12), seed=SEED)
    rows = orders(e.counts, 2, torch.tensor([0]), SEED, range(updates)).view(updates, 2)
    start = network.start(torch.zeros(updates, dtype=torch.int64), e.unit.expand(updates, 1), SEED)
    terms = network.terms(e.counts.expand(updates), e.unit.expand(updates, 1))
    x, y = prepared(e.inputs[0, rows]), e.targets[0, rows]
    values, _ = network.slope(network.bind(start), x, y, {}, terms)
    assert float(found.loss) == pytest.approx(float(values[30:].mean()), rel=1e-7)
    assert float(found.loss) != pytest.approx(float(values.mean()), rel=1e-5)  # all of them


def test_adam_is_torchs():
    """On given gradients of very different sizes, zeros among them; the average weighs the later more and forgets the start."""
    gradients = normal("g", 30, 3, 4) * torch.tensor([1.0, 1e-6, 1e6, 0.0]).double()
    flat = normal("flat", 3, 4)
    theirs = flat.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=0.03)
    ours = Adam(flat, Schedule(30, 1, rate=0.03, average=0.95))
    path = []
    for step, gradient in enumerate(gradients):
        theirs.grad = gradient.clone()
        optimiser.step()
        given = gradient.clone()
        ours.step(given, ours.factors(step))
        ours.follow()
        assert torch.equal(given, gradient)
        torch.testing.assert_close(flat, theirs.detach(), rtol=1e-6, atol=1e-7)
        path.append(flat.clone())
        torch.testing.assert_close(
            ours.averaged(step), averaged(torch.stack(path), 0.95), rtol=1e-9, atol=1e-9
        )
    torch.testing.assert_close(ours.flat, flat)  # in place


def test_the_average_of_one_step_is_that_step():
    network, e = Network.of(Factorised(), (2, 1), Gaussian()), examples([6])
    first = fit(network, e, Schedule(1, 3, average=0.999), seed=SEED)
    last = fit(network, e, Schedule(1, 3, average=0.0), seed=SEED)
    torch.testing.assert_close(first.flat, last.flat)


def test_rates_are_factors_of_the_schedules():
    network, e = Network.of(Factorised(), (2, 3, 1), Gaussian()), examples([8] * 3)
    members = torch.zeros(3, dtype=torch.int64)
    alike = Examples(*(x[:1].expand(3, *x.shape[1:]) for x in (e.inputs, e.targets, e.counts, e.unit)))
    rates = torch.tensor([[1.0], [4.0], [0.0]]).double()
    found = fit(network, alike, Schedule(9, 4, rate=0.01), seed=SEED, members=members, rates=rates)
    for run, rate in ((0, 0.01), (1, 0.04)):
        wanted = fit(network, chosen(e, [0]), Schedule(9, 4, rate=rate), seed=SEED)
        torch.testing.assert_close(found.flat[run], wanted.flat[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.flat[2:], network.start(members[:1], e.unit[:1], SEED))


def test_a_given_start_is_kept_as_it_was():
    network, e = Network.of(Factorised(), (2, 1), Gaussian()), examples([8])
    start = normal("start", 1, network.size)
    before = start.clone()
    found = fit(network, e, Schedule(1, 4, rate=1e-9), seed=SEED, start=start)
    assert torch.equal(start, before)
    torch.testing.assert_close(found.flat, start, rtol=0, atol=1e-8)


@pytest.mark.parametrize("per_entry", [False, True])
def test_noises_of_pseudo_data_stay_inside_their_bounds(per_entry):
    law = PseudoData(2, 0.01, per_entry=per_entry)
    network, e = Network.of(law, (2, 3, 1), Gaussian()), examples([8] * 4)
    found = fit(network, e, Schedule(30, 4, rate=0.5, average=0.0), seed=SEED)
    logs = torch.cat([p["log_noise"] for p in network.parameters(found.flat)], 1)
    # the average's own rounding aside
    assert float(logs.max()) == pytest.approx(law.bound)
    assert float(logs.min()) >= LOWEST_LOG_NOISE - 1e-9
    assert float(logs.min()) < law.bound - 0.1  # they move


# -------------------------------------------------------------------------------------------------- runs by themselves


@each_law
def test_a_run_does_not_depend_on_its_neighbours(law):
    """Alone, in other company and in all of it, numbers in no order and counts mixed: equal to rounding (float64).

    Small stacks agree to the bit on a CPU; of larger ones matrix products add in an order that their size decides.
    """
    network, e = Network.of(law, (2, 5, 2), Gaussian()), examples([20, 11, 20, 6, 17], outputs=2)
    members, schedule = torch.tensor([2, 7, 1, 0, 5]), Schedule(11, 5, rate=0.01, looks=(10,))
    together = fit(network, e, schedule, seed=SEED, members=members)
    for runs in ([3], [4, 1], [3, 2, 1, 0]):
        found = fit(network, chosen(e, runs), schedule, seed=SEED, members=members[runs])
        close = {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(found.flat, together.flat[runs], **close)
        torch.testing.assert_close(found.loss, together.loss[runs], **close)
        torch.testing.assert_close(found.looks[10], together.looks[10][runs], **close)


def test_a_run_does_not_depend_on_its_neighbours_in_single_precision():
    """As chapters train: to 1e-5 where float32 rounds at 1e-7, and all that is returned is float32."""
    network, e = Network.of(RowColumn(), (2, 5, 1), Gaussian()), examples([20, 11, 6])
    e = Examples(e.inputs.float(), e.targets.float(), e.counts, e.unit.float())
    schedule, members = Schedule(11, 5, rate=0.01, looks=(10,)), torch.tensor([7, 2, 4])
    together = fit(network, e, schedule, seed=SEED, members=members)
    for run in range(3):
        alone = fit(network, chosen(e, [run]), schedule, seed=SEED, members=members[run : run + 1])
        assert {x.dtype for x in (alone.flat, alone.loss, alone.looks[10])} == {torch.float32}
        torch.testing.assert_close(alone.flat, together.flat[run : run + 1], rtol=1e-5, atol=1e-5)


def test_rows_beyond_a_runs_count_are_never_read():
    network, e = Network.of(RowColumn(), (2, 3, 1), Gaussian()), examples([20, 9])
    found = fit(network, e, Schedule(15, 4), seed=SEED).flat
    e.inputs[1, 9:], e.targets[1, 9:] = 1e30, -1e30
    assert torch.equal(fit(network, e, Schedule(15, 4), seed=SEED).flat, found)


@each_law
def test_members_of_one_number_share_start_order_and_noise(law):
    network, e = Network.of(law, (2, 3, 1), Gaussian()), examples([12])
    alike = Examples(*(x.expand(3, *x.shape[1:]) for x in (e.inputs, e.targets, e.counts, e.unit)))
    found = fit(network, alike, Schedule(8, 4), seed=SEED, members=torch.tensor([6, 9, 6])).flat
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)
    assert (found[1] - found[0]).abs().max() > 0.01
    starts = network.start(torch.tensor([6]), e.unit, SEED).expand(3, -1)
    found = fit(network, alike, Schedule(8, 4), seed=SEED, members=torch.tensor([6, 9, 6]), start=starts).flat
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)
    assert (found[1] - found[0]).abs().max() > 1e-4  # the start is not all that they have of their own


def test_by_default_runs_are_numbered_from_zero():
    network, e = Network.of(RowColumn(), (2, 1), Gaussian()), examples([8, 8])
    found = fit(network, e, Schedule(3, 4), seed=SEED)
    assert found.members.tolist() == [0, 1]
    numbered = fit(network, e, Schedule(3, 4), seed=SEED, members=torch.arange(2))
    assert torch.equal(found.flat, numbered.flat)
    assert not torch.equal(found.flat, fit(network, e, Schedule(3, 4), seed=SEED + 1).flat)


def test_one_set_for_all_runs_is_that_set_for_each():
    network, e = Network.of(RowColumn(), (2, 3, 1), Gaussian()), examples([20])
    one = Examples(e.inputs, e.targets, torch.tensor([20, 9]), torch.ones(2, 1).double())
    two = Examples(e.inputs.repeat(2, 1, 1), e.targets.repeat(2, 1, 1), one.counts, one.unit)
    found, wanted = (fit(network, each, Schedule(9, 4), seed=SEED).flat for each in (one, two))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_classes_are_learned():
    """Two clouds far apart: the loss falls from ln 2 to nearly nothing."""
    labels = torch.arange(40)[None] % 2
    x = normal("clouds", 1, 40, 2) + 6 * labels[..., None] - 3
    network = Network.of(Point(), (2, 4, 2), Categorical(), hyper_priors=False, charge=0.0)
    e = Examples(x, labels, torch.tensor([40]), torch.ones(1, 1).double())
    assert float(fit(network, e, Schedule(120, 10, rate=0.05), seed=SEED).loss) < 0.25


# ------------------------------------------------------------------------------------------------------------- orders


COUNTS, MEMBERS, BATCH = torch.tensor([17, 5, 20, 17]), torch.tensor([3, 4, 3, 1 << 32]), 5


def ordered(steps, counts=COUNTS, members=MEMBERS, seed=SEED):
    return orders(counts, BATCH, members, seed, steps)


def test_every_epoch_is_a_permutation_of_the_runs_own_rows():
    """What fills no batch waits: of seventeen rows fifteen are read an epoch, none twice, and every one some day."""
    found = ordered(range(24))
    for n, rows in zip(COUNTS.tolist(), found, strict=True):
        length = n // BATCH * BATCH
        epochs = rows[: len(rows) // length * length].view(-1, length)
        assert all(len(set(epoch)) == length for epoch in epochs.tolist())
        assert set(rows.tolist()) == set(range(n))
        assert (
            len({tuple(epoch) for epoch in epochs.tolist()}) > len(epochs) / 2
        )  # another order each time, but by chance


def test_blocks_of_updates_join_whatever_their_length():
    whole = ordered(range(25))
    for length in (1, 2, 3, 7, 24):
        blocks = [range(k, min(k + length, 25)) for k in range(0, 25, length)]
        assert torch.equal(torch.cat([ordered(block) for block in blocks], 1), whole)


def test_an_order_is_known_by_seed_member_and_count():
    whole = ordered(range(9))
    for run in range(4):
        assert torch.equal(ordered(range(9), COUNTS[run : run + 1], MEMBERS[run : run + 1])[0], whole[run])
    assert not torch.equal(whole[0], whole[3])  # another member of as many rows
    assert not torch.equal(ordered(range(9), seed=SEED + 1), whole)


def test_batches_are_the_rows_in_that_order(monkeypatch):
    e, schedule = examples(COUNTS.tolist()), Schedule(11, BATCH)
    rows = ordered(range(11)).view(4, 11, BATCH)
    for held in (1 << 22, 4 * BATCH * 3 * 2, 1):  # all at once, two updates at a time, one
        monkeypatch.setattr(training, "HELD", held)
        found = list(batches(e, schedule, MEMBERS, SEED))
        assert len(found) == 11
        for step, (x, y) in enumerate(found):
            for run in range(4):
                taken = rows[run, step]
                torch.testing.assert_close(x[run], prepared(e.inputs[run, taken]))
                assert torch.equal(y[run], e.targets[run, taken])


# ------------------------------------------------------------------------------------------------------------ refusals


def test_fewer_rows_than_a_batch_are_refused_by_number():
    network, e = Network.of(Point(), (2, 1), Gaussian()), examples([9, 4, 5])
    with pytest.raises(
        ValueError, match=r"runs \[7\] have fewer examples than a batch of 5: take smaller batches"
    ):
        fit(network, e, Schedule(2, 5), seed=SEED, members=torch.tensor([3, 7, 8]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_what_is_no_number_is_refused(bad, where):
    x, y = normal("x", 1, 4, 2), normal("y", 1, 4, 1)
    {"inputs": x, "targets": y}[where][0, 3, 0] = bad
    with pytest.raises(ValueError, match="a number that is not finite"):
        Examples(x, y, torch.tensor([4]), torch.ones(1, 1).double())


@pytest.mark.parametrize("counts", [[21, 20], [0, 20]])
def test_counts_beyond_the_rows_are_refused(counts):
    with pytest.raises(ValueError, match="between 1 and the 20 rows there are"):
        examples(counts)


@pytest.mark.parametrize("bad", [{"updates": 0}, {"batch": 0}, {"looks": (5, 11)}, {"looks": (0,)}])
def test_schedules_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="no look may lie behind the last update"):
        Schedule(**{"updates": 10, "batch": 2} | bad)


def test_diverged_runs_are_named():
    network, e = Network.of(Point(), (2, 1), Gaussian()), examples([8] * 3)
    rates = torch.tensor([[1.0], [1e306], [1.0]]).double()
    with pytest.raises(Diverged, match=r"1 of 3 runs diverged \(run 42\)"):
        fit(network, e, Schedule(4, 4, rate=10.0), seed=SEED, members=torch.tensor([5, 42, 6]), rates=rates)


def test_sets_that_are_neither_one_nor_one_a_run_are_refused():
    three = torch.tensor([5, 5, 5])
    with pytest.raises(ValueError, match="2 sets of inputs and 2 of targets for 3 runs"):
        Examples(torch.zeros(2, 5, 1), torch.zeros(2, 5, 1), three, torch.ones(3, 1))
