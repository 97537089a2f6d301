"""torchvision's ResNet-18 with random weights, small pictures: matched, BatchNorm read anew, and merged."""

import torch
from report_cases import models_of

from lib.device import one_thread
from lib.report import assess
from lib.report.builder import builder
from lib.report.data_source import Source, draw
from lib.symmetry import find_symmetries


@one_thread()  # beside other tests a second one would only be waited for
def test_two_residual_networks():
    build = builder("torchvision.models:resnet18")
    states = []
    for i in range(2):
        torch.manual_seed(i)
        states.append(build().state_dict())
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 64, 64, generator=draws), torch.randint(1000, (8,), generator=draws)
    models, halves = (
        models_of(*states, net=build()),
        draw(Source("classification", y, lambda rows: x[rows])),
    )
    symmetries = find_symmetries(models.net, halves.example)
    assert len(symmetries.permutations) == 12
    alignment = assess.align(models, symmetries, joint=False)
    assert float(alignment.after) < float(alignment.before)
    found = assess.barriers(models, halves, symmetries, alignment, points=3, parted=0)
    assert len(found.kinds) == 4
    assert all(bool(lines.loss.isfinite().all()) for lines in found.kinds.values())
    merged = assess.merging(models, halves, symmetries, alignment)
    assert merged.merged["bn1.running_var"].min() > 0
    assert len(merged.error) == 8
    build().load_state_dict(merged.merged)
