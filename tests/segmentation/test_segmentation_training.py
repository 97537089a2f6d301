"""Trainings: paired in start and order, plain in their steps, stopped where they diverge, and able to learn."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from coloured import scenes

from lib.matrix_gaussian.graph import NoGraph
from lib.segmentation.scenes import VOID
from lib.segmentation.scores import Scores, class_weights, confusion
from lib.segmentation.segnet import SegNet
from lib.segmentation.training import METHODS, SGD, UNIT, Plan, Trainer, gradient_step, optimiser, start

SEED = 991
PLAN = Plan((0.1,), 2, 3, 4, levels=1, channels=6, kernel=3, frames=(2, 0))


class Spy:
    """A trainer's step, and what it was given: parameters at the first call, batches and rates at every."""

    def __init__(self, trainer):
        self.trainer, self.inner = trainer, trainer.step
        self.first, self.batches = None, []
        trainer.step = self

    def __call__(self, images, labels, weights, noise):
        if self.first is None:
            self.first = {name: x.clone() for name, x in self.trainer.net.state_dict().items()}
        self.batches.append(images.clone())
        return self.inner(images, labels, weights, noise)


def watched(method, rate, k, seed=SEED, plan=PLAN, given=None):
    spy = Spy(Trainer(given or scenes(), plan, seed))
    spy.trainer.run(method, rate, k)
    return spy


def same(one, other):
    """But for the last bit, which filters lose when the optimiser takes their length again."""
    return all(torch.allclose(one[name], other[name], rtol=1e-6, atol=1e-7) for name in one)


# ------------------------------------------------------------------------------------------------------------ pairing


def test_starts_and_orders_are_those_of_the_number():
    """The same for both methods and every rate, others for another number or seed; also after other trainings."""
    spy = watched(SGD, 0.1, 1)
    for method, rate in ((UNIT, 0.1), (SGD, 2.0)):
        other = watched(method, rate, 1)
        assert same(spy.first, other.first)
        assert torch.equal(torch.stack(spy.batches), torch.stack(other.batches))
    for other in (watched(SGD, 0.1, 0), watched(SGD, 0.1, 1, seed=SEED + 1)):
        assert not torch.equal(spy.first["encoder.0.0.weight"], other.first["encoder.0.0.weight"])
        assert not torch.equal(spy.batches[0], other.batches[0])
    trainer = Trainer(scenes(), PLAN, SEED)
    trainer.run(UNIT, 2.0, 0)
    later = Spy(trainer)
    trainer.run(UNIT, 0.1, 1)
    assert same(spy.first, later.first)  # norms' averages included


def test_every_epoch_has_an_order_of_its_own_and_no_image_twice():
    given = scenes()
    batches = watched(SGD, 0.1, 0, given=given).batches
    assert len(batches) == 3 * 2  # ten images in batches of four: two sit out
    place = [
        [int((given.train.images == image).flatten(1).all(1).nonzero()[0, 0]) for image in batch]
        for batch in batches
    ]
    epochs = [place[i] + place[i + 1] for i in (0, 2, 4)]
    assert all(len({*epoch}) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_filters_start_at_unit_length_and_the_classifier_as_he_has_it():
    net = SegNet(11, levels=2, channels=64, kernel=3)
    found = start(net, SEED, 0)
    assert list(found) == [name for name, _ in net.named_parameters()]
    for name in net.filters():
        torch.testing.assert_close(found[name].flatten(1).norm(dim=1), torch.ones(64))
    assert float(found["classifier.weight"].std()) == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert found["classifier.bias"].abs().max() == 0
    assert not torch.allclose(found["encoder.1.0.weight"], found["decoder.1.0.weight"])
    learned = start(SegNet(levels=1, channels=2, kernel=1, affine=True), SEED, 0)
    assert learned["encoder.0.1.weight"].tolist() == [1, 1]
    assert learned["encoder.0.1.bias"].tolist() == [0, 0]


# -------------------------------------------------------------------------------------------------------------- steps


def by_hand(net, images, labels, weights):
    """Loss and gradients, pixel by pixel."""
    logits = net(images).log_softmax(1)
    known = labels != VOID
    each = -logits.movedim(1, -1)[known].gather(1, labels[known][:, None])[:, 0]
    loss = (weights[labels[known]] * each).sum() / weights[labels[known]].sum()
    return loss.detach(), torch.autograd.grad(loss, list(net.parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_one_step_by_hand(method):
    """No momentum, no decay: a plain step, and for filters of unit norm the projected one, back to the sphere."""
    plan = replace(PLAN, epochs=1, batch=10)
    trainer = Trainer(scenes(), plan, SEED)
    spy = Spy(trainer)
    outcome = trainer.run(method, 0.7, 0)
    net = SegNet(3, levels=1, channels=6, kernel=3)
    net.load_state_dict(spy.first)
    given, (rows,) = scenes().train, trainer.order(0, 0)
    weights = class_weights(given.labels, 3)
    loss, slopes = by_hand(net, given.images[rows], given.labels[rows], weights)
    assert float(outcome.losses[0]) == pytest.approx(float(loss), rel=1e-5)
    for (name, p), slope in zip(net.named_parameters(), slopes, strict=True):
        p = p.detach()
        if method == UNIT and name in net.filters():
            w, g = p.flatten(1), slope.flatten(1)
            wanted = F.normalize(w - 0.7 * (g - (g * w).sum(1, keepdim=True) * w), dim=1).view_as(p)
        else:
            wanted = p - 0.7 * slope
        torch.testing.assert_close(trainer.net.get_parameter(name).detach(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [0.95, 1.0])
def test_the_rate_decays_by_epoch(decay, monkeypatch):
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    watched(SGD, 0.4, 0, plan=replace(PLAN, decay=decay))
    assert rates == pytest.approx([0.4 * decay**e for e in (0, 0, 1, 1, 2, 2)])
    assert PLAN.decay == 0.95


def test_the_package_finds_the_filters_and_they_stay_at_unit_length():
    trainer = Trainer(scenes(), replace(PLAN, levels=2), SEED)
    unit, rest = optimiser(trainer.net, UNIT, 0.3).param_groups
    assert (unit["unit_norm"], rest["unit_norm"], unit["lr"], rest["lr"]) == (True, False, 0.3, 0.3)
    assert [id(p) for p in unit["params"]] == [id(p) for p in trainer.net.filters().values()]
    assert [id(p) for p in rest["params"]] == [id(p) for p in trainer.net.classifier.parameters()]
    assert trainer.net.unpooling == "places"
    for method, longest in ((UNIT, 1 + 1e-5), (SGD, 10)):
        trainer.run(method, 1.0, 0)
        norms = torch.cat([p.detach().flatten(1).norm(dim=1) for p in trainer.net.filters().values()])
        assert 1 - 1e-5 < norms.min() <= norms.max() < longest
    assert norms.max() > 1.01  # under plain descent they grow


def test_the_gradient_is_left_in_memory_that_stays():
    net = SegNet(3, levels=1, channels=4, kernel=3)
    step, given = gradient_step(net), scenes().train
    places = [p.grad.data_ptr() for p in net.parameters()]
    weights = torch.tensor([1.0, 2.0, 3.0])
    _, slopes = by_hand(net, given.images, given.labels, weights)
    for _ in range(2):  # not added up
        step(given.images, given.labels, weights, {})
    assert [p.grad.data_ptr() for p in net.parameters()] == places
    for p, slope in zip(net.parameters(), slopes, strict=True):
        torch.testing.assert_close(p.grad, slope, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_near_float32_and_keeps_weights_in_float32():
    losses = []
    for small in (False, True):
        trainer = Trainer(scenes(), replace(PLAN, bfloat16=small), SEED)
        losses.append(trainer.run(UNIT, 0.3, 0).losses)
        assert {x.dtype for x in trainer.net.state_dict().values()} == {torch.float32, torch.int64}
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.03, atol=0)


# ------------------------------------------------------------------------------------------------------------- outcome


@pytest.mark.parametrize("method", METHODS)
def test_training_learns(method):
    plan = replace(PLAN, epochs=12, channels=8)
    found = Trainer(scenes(24), plan, SEED).run(method, 0.5, 0)
    assert found.losses[-1] < 0.5 * found.losses[0]
    assert found.scores("val").mean_iou > 0.7
    assert found.scores("test").global_accuracy > 0.8


def test_an_outcome_is_that_of_the_network_with_running_averages():
    trainer, given = Trainer(scenes(), PLAN, SEED), scenes()
    found = trainer.run(SGD, 0.5, 1)
    trainer.net.eval()
    one_by_one = torch.cat([trainer.net(image[None]).argmax(1) for image in given.test.images])
    assert torch.equal(found.test, confusion(given.test.labels, one_by_one, 3))
    assert torch.equal(found.shown, one_by_one[[2, 0]].to(torch.uint8))
    assert int(found.val.sum()) == 3 * 16 * 15  # void left out
    assert found.scores("val") != found.scores("test")


def test_a_training_that_diverges_is_stopped_and_counts_as_the_worst():
    spy = watched(SGD, float("inf"), 0)
    assert len(spy.batches) == 2  # of the first epoch
    trainer = spy.trainer
    found = trainer.run(SGD, float("inf"), 0)
    assert found.diverged
    assert found.losses.isnan().all()
    assert found.scores("val") == found.scores("test") == Scores(0, 0, 0)
    assert found.shown.unique().tolist() == [VOID]
    assert found.shown.shape == (2, 16, 16)
    after, fresh = trainer.run(UNIT, 0.1, 1), Trainer(scenes(), PLAN, SEED).run(UNIT, 0.1, 1)
    assert all(torch.equal(vars(after)[name], vars(fresh)[name]) for name in vars(fresh))


def test_a_last_step_that_breaks_the_weights_is_seen():
    found = Trainer(scenes(), replace(PLAN, epochs=1, batch=10), SEED).run(SGD, float("inf"), 0)
    assert found.losses.isfinite().all()
    assert found.diverged
    assert found.scores("test") == Scores(0, 0, 0)


# --------------------------------------------------------------------------------------------------------------- graph


class Waiting:
    def wait_stream(self, other):
        pass


def test_where_no_graph_can_be_captured_training_goes_on_as_if_never_tried(monkeypatch):
    """The trial steps leave no trace: neither in the gradients nor in the norms' averages."""

    @contextmanager
    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    for name, value in {
        "CUDAGraph": object,
        "Stream": Waiting,
        "current_stream": Waiting,
        "stream": lambda stream: nullcontext(),
        "graph": refuse,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    trainer = Trainer(scenes(), PLAN, SEED, graph=True)
    with pytest.warns(NoGraph, match="could not be captured") as warned:
        found = trainer.run(UNIT, 0.3, 0)
    wanted = Trainer(scenes(), PLAN, SEED).run(UNIT, 0.3, 0)
    assert all(torch.equal(vars(found)[name], vars(wanted)[name]) for name in vars(wanted))
    trainer.run(SGD, 0.3, 0)
    assert len(warned) == 1  # and is not tried again


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_device_trains_as_a_cpu_does(method):
    cpu, cuda = (
        Trainer(scenes().to(torch.device(name)), PLAN, SEED).run(method, 0.1, 0) for name in ("cpu", "cuda")
    )
    torch.testing.assert_close(cuda.losses, cpu.losses, rtol=0.01, atol=0)
    assert cuda.shown.device.type == "cpu"


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rates": ()}, "give one or more"),
        ({"rates": (0.1, 0.0)}, "learning rates above zero"),
        ({"seeds": 0}, "0 seeds"),
        ({"epochs": 0}, "0 epochs"),
        ({"batch": 0}, "batches of 0"),
    ],
)
def test_plans_that_train_nothing_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(PLAN, **change)


def test_what_does_not_fit_the_scenes_is_refused():
    with pytest.raises(ValueError, match="10 images fill no batch of 11"):
        Trainer(scenes(), replace(PLAN, batch=11), SEED)
    with pytest.raises(IndexError, match=r"frames \(2, 4\) are not all among the 4 test images"):
        Trainer(scenes(), replace(PLAN, frames=(2, 4)), SEED)
    with pytest.raises(ValueError, match="method 'Adam' is not known: use one of SGD, unit norm"):
        Trainer(scenes(), PLAN, SEED).run("Adam", 0.1, 0)
