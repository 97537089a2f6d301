"""How noisy a gradient is when weights are drawn, and when pre-activations are (P3-C11)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lib import intervals, randomness
from lib.claims import Measurement
from lib.contest.images import load
from lib.matrix_gaussian.laws import Factorised, Law, Parameters, Point, RowColumn, product
from lib.matrix_gaussian.likelihoods import Categorical
from lib.matrix_gaussian.network import Network, prepared
from lib.matrix_gaussian.training import Examples, Schedule, fit

LAWS: dict[str, Law] = {"factorised": Factorised(), "diagonal matrix Gaussian": RowColumn()}
BATCH = 100
SHORT = Schedule(300, BATCH, 0.01, 0.99)
CHARGE = 0.1  # of the divergence: a layer that has learned something


@dataclass(frozen=True, eq=False)
class Gradients:
    """P3-C11: its measurements, and by posterior the ratio of variances of every parameter of the layer that has a gradient, all
    seeds together; ``apart``: the median of the ratio, seed by seed, of each kind of parameter (means, logarithms of deviations)."""

    measurements: list[Measurement]
    ratios: dict[str, Float[np.ndarray, " parameters"]]
    apart: dict[str, dict[str, Float[np.ndarray, " seeds"]]]


def measure_gradients(
    *, draws: int, seeds: int, seed: int, device: torch.device, hidden: int = 50, images: str = "digits"
) -> Gradients:
    """Train short, then draw the gradient of the loss on one batch many times in both ways, at the same point."""
    digits = load(images).to(device)
    counts = torch.full((seeds,), len(digits.train), device=device)
    examples = Examples(digits.train[None], digits.labels[None], counts, torch.ones(seeds, 1, device=device))
    x, y = prepared(digits.train[:BATCH]), digits.labels[:BATCH]
    found, ratios, apart = [], {}, {}
    for name, law in LAWS.items():
        widths = (digits.train.shape[1], hidden, 10)
        network = Network(widths, (law, Point()), Categorical(), hyper_priors=False, charge=CHARGE)
        layers = network.parameters(fit(network, examples, SHORT, seed=seed).flat)
        each, kinds = [], {kind: [] for kind in layers[0]}
        for run in range(seeds):
            p, readout = ({n: v[run] for n, v in layer.items()} for layer in layers)
            both = [
                gradients(law, p, readout["mean"], x, y, draws=draws, seed=seed, run=run, local=local)
                for local in (False, True)
            ]
            drawn, alone = (gradient.var(0) for gradient in both)
            ratio = drawn / alone
            # not those of pixels that are black in the whole batch; what is still locally alone has an infinite ratio
            moves = ~((drawn == 0) & (alone == 0))
            each.append(ratio[moves].cpu().double().numpy())
            sizes = [value.numel() for value in p.values()]
            for kind, own, alive in zip(p, ratio.split(sizes), moves.split(sizes), strict=True):
                kinds[kind].append(np.median(own[alive].cpu().double().numpy()))
        ratios[name] = np.concatenate(each)
        apart[name] = {kind: np.array(values) for kind, values in kinds.items()}
        medians = np.array([np.median(ratio) for ratio in each])
        found.append(Measurement("variance_ratio", name, *intervals.student(medians), n=draws, seeds=seeds))
    return Gradients(found, ratios, apart)


def gradients(
    law: Law,
    p: Parameters,
    readout: Float[Tensor, "h k"],
    x: Float[Tensor, "N r"],
    y: Int64[Tensor, " N"],
    *,
    draws: int,
    seed: int,
    run: int,
    local: bool,
) -> Float[Tensor, "draws parameters"]:
    """Gradients of the mean loss of a batch in all parameters of the layer, one a draw."""
    (r, c), batch = p["mean"].shape, len(x)
    shapes = law.noise_shapes(batch, r, c) if local else law.weight_noise_shapes(r, c)
    noise = {
        name: randomness.normal(seed, torch.tensor([run]), f"gradient/{local}/{name}", 0, (draws, *shape))[
            0
        ].to(x)
        for name, shape in shapes.items()
    }
    p = {name: value.expand(draws, *value.shape) for name, value in p.items()}
    a = x.expand(draws, *x.shape)
    if local:
        out, tape = law.forward(p, a, noise)
    else:
        weights = law.weights(p, noise)
        out = product(a, weights)
    hidden = prepared(out.relu())
    logits = hidden @ readout
    answers = y.expand(draws, -1)
    _, of_logits, _, _ = Categorical().slope(logits, answers, logits, logits)
    below = (of_logits @ readout.T)[..., :-1] * (out > 0) * (c + 1) ** -0.5
    if local:
        found, _ = law.backward(p, tape, below, False)
    else:
        found = through_weights(product(a.mT, below), weights - p["mean"], p)
    return torch.cat([found[name].flatten(1) for name in p], dim=1)


def through_weights(of_weights: Tensor, deviation: Tensor, p: Parameters) -> Parameters:
    """From the gradient in W = M + deviation to that in the parameters: a logarithm of s scales its part of the deviation."""
    spread = of_weights * deviation
    of_logs = {
        "log_sd": lambda: spread,
        "log_row": lambda: spread.sum(-1),
        "log_column": lambda: spread.sum(-2),
    }
    return {"mean": of_weights} | {name: of_logs[name]() for name in p if name != "mean"}
