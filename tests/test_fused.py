"""The fused kernel, its very source run on this CPU (``cuda_on_cpu.hpp``), against the ordinary path and torch.optim."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lib.networks import optumnist
from lib.params import member, select
from lib.population import (
    Cosine,
    MultiStep,
    Recipe,
    fused,
    fused_launch,
    fused_report,
    initial,
    train,
    training,
)
from lib.population.fused import TOLERANCE, as_bytes, disagreement, fit, is_optumnist
from lib.randomness import permutation

HERE = Path(__file__).parent
GXX = shutil.which("g++")
needs_compiler = pytest.mark.skipif(GXX is None, reason="no g++ here to build the kernel for this CPU")
ENTRY = """
#include "{shim}"
{kernel}
extern "C" void run(int blocks, int threads, int backwards, float* weights, float* losses, const int* order,
                    const uint4* images, const unsigned char* labels, const float* rates, const int* sizes,
                    const float* numbers) {{
    for (int block = 0; block < blocks; ++block) {{
        blockIdx.x = block;
        cpu::run_block(threads, backwards, [&] {{
            train_networks(weights, losses, order, images, labels, rates, sizes, numbers);
        }});
    }}
}}
"""


@lru_cache
def library(source: str, folder: Path, windows: int) -> ctypes.CDLL:
    path = folder / f"kernel{len(list(folder.iterdir()))}"
    path.with_suffix(".cpp").write_text(ENTRY.format(shim=HERE / "cuda_on_cpu.hpp", kernel=source))
    defines = [f"-D{name}={value}" for name, value in (fused.DEFINES | {"WINDOWS": windows}).items()]
    command = [GXX, "-std=c++17", "-O2", "-w", "-shared", "-fPIC", *defines]
    subprocess.run([*command, "-o", path.with_suffix(".so"), path.with_suffix(".cpp")], check=True)
    return ctypes.CDLL(path.with_suffix(".so"))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """emulated(change=(old, new), backwards=False): a launch function, of the kernel with a planted change if asked for."""
    folder = tmp_path_factory.mktemp("kernel")

    def build(change=None, backwards=False, windows=fused.DEFINES["WINDOWS"]):
        source = fused.SOURCE.read_text()
        if change:
            assert source.count(change[0]) == 1, "the planted fault must hit one place"
            source = source.replace(*change)
        run = library(source, folder, windows).run
        return lambda blocks, *tensors: run(
            blocks, fused.THREADS, int(backwards), *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
        )

    return build


def problem(n=100, seed=0):
    """Images with blank borders, as digits have them, all 256 bytes, and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, 1, 28, 28)
    images[..., 4:24, 4:24] = torch.randint(0, 256, (n, 1, 20, 20), generator=generator).float()
    images[0, 0, 10, 10:12] = torch.tensor([0.0, 255.0])
    return images / 255, torch.randint(0, 10, (n,), generator=generator)


def trained(launch, monkeypatch, x, y, recipe, members=2, **options):
    """``population.train`` with the kernel in place of the card's."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "_fused", lambda *run: fit(*run[:5], launch))
        return train(optumnist(), x, y, recipe, members=members, seed=5, **options)


def assert_same_change(ours, theirs, start, tolerance):
    for name in theirs:
        change = (theirs[name].double() - start[name]).flatten(1).norm(dim=1)
        error = (ours[name].double() - theirs[name]).flatten(1).norm(dim=1)
        assert (error <= tolerance * change).all(), f"{name}: {(error / change).max():.1e}"


RECIPES = {
    "one full step": (64, Recipe(0.1, 64, 1)),
    "decay and a last batch that is not full": (100, Recipe(0.1, 64, 1, weight_decay=0.05)),
    "small batches, rates that step down": (
        90,
        Recipe(0.2, 30, 3, weight_decay=2e-4, schedule=MultiStep((1, 2.5), 0.5)),
    ),
    "warm-up, cosine, the rest dropped": (
        75,
        Recipe(0.2, 32, 2, schedule=Cosine(0.1), warmup=1, drop_last=True),
    ),
    "fewer examples than a batch": (20, Recipe(0.1, 64, 2)),
}


@needs_compiler
@pytest.mark.parametrize("kind", RECIPES)
def test_kernel_trains_as_the_ordinary_path_in_double_precision_does(kind, emulated, monkeypatch):
    n, recipe = RECIPES[kind]
    x, y = problem(n)
    ours = trained(emulated(), monkeypatch, x, y, recipe)
    start = initial(optumnist(), ours.members, 5)
    double = {name: tensor.double() for name, tensor in start.items()}
    theirs = train(optumnist().double(), x.double(), y, recipe, members=2, seed=5, start=double, fast=False)
    assert_same_change(ours.params, theirs.params, start, 2e-4)
    torch.testing.assert_close(ours.loss.double(), theirs.loss, rtol=1e-5, atol=0)


@needs_compiler
def test_one_member_trains_as_torch_optim_would_train_it(emulated, monkeypatch):
    x, y = problem()
    x = (x - 0.1307) / 0.3081  # pixels with a shift
    recipe = Recipe(0.2, 64, 2, weight_decay=0.01)
    ours = trained(emulated(), monkeypatch, x, y, recipe, members=torch.tensor([11, 4]))
    net = optumnist().double()
    start = initial(net, ours.members, 5)
    start = {name: tensor.float().double() for name, tensor in initial(optumnist(), ours.members, 5).items()}
    net.load_state_dict(member(start, 1))
    optimiser = torch.optim.SGD(net.parameters(), 0.2, weight_decay=0.01)
    for epoch in range(2):
        total = 0.0
        for rows in permutation(5, torch.tensor([4]), "order", epoch, len(x))[0].split(64):
            optimiser.zero_grad()
            loss = F.cross_entropy(net(x[rows].double()), y[rows])
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
    one = torch.tensor([1])
    theirs = {name: tensor[None] for name, tensor in net.state_dict().items()}
    assert_same_change(select(ours.params, one), theirs, select(start, one), 2e-4)
    assert float(ours.loss[1]) == pytest.approx(total / len(x), rel=1e-5)


@needs_compiler
def test_dead_units_stay_dead_and_members_do_not_see_each_other(emulated, monkeypatch):
    x, y = problem(70)
    start = initial(optumnist(), 3, 5)
    start["0.weight"][1] = -start["0.weight"][1].abs()  # member 1: nothing passes the first ReLU
    start["7.bias"][2] = -10.0  # member 2: no hidden unit of the head ever fires
    recipe = Recipe(0.1, 32, 1)
    ours = trained(emulated(), monkeypatch, x, y, recipe, 3, start=start)
    theirs = train(optumnist(), x, y, recipe, members=3, seed=5, start=start, fast=False)
    for name in theirs.params:
        torch.testing.assert_close(ours.params[name], theirs.params[name], rtol=1e-5, atol=1e-6)
    for name in ("0.weight", "3.weight"):
        assert torch.equal(ours.params[name][1:], start[name][1:])
    assert not torch.equal(ours.params["9.bias"][1:], start["9.bias"][1:])
    alone = trained(
        emulated(),
        monkeypatch,
        x,
        y,
        recipe,
        torch.tensor([1]),
        start=select(start, torch.tensor([1])),
    )
    assert all(torch.equal(alone.params[name][0], ours.params[name][1]) for name in alone.params)


@needs_compiler
@pytest.mark.parametrize("change", [None, ("z > best", "z >= best")])
def test_of_equal_outputs_the_first_gets_the_gradient(change, emulated, monkeypatch):
    x, y = problem(64)
    x = (x > 0.5).float()  # two values only, and a filter that reads one pixel: ties everywhere
    start = initial(optumnist(), 2, 5)
    start["0.weight"].zero_()[:, :, 0, 0, 0] = 1.0
    start["3.weight"].abs_()
    recipe = Recipe(0.1, 64, 1)
    ours = trained(emulated(change), monkeypatch, x, y, recipe, start=start)
    theirs = train(optumnist(), x, y, recipe, members=2, seed=5, start=start, fast=False)
    same = torch.allclose(ours.params["0.weight"], theirs.params["0.weight"], rtol=1e-4, atol=1e-6)
    assert same == (change is None)


@needs_compiler
def test_a_diverged_member_is_marked_at_the_step_that_the_ordinary_path_names(emulated, monkeypatch):
    x, y = problem(96)
    start = initial(optumnist(), 3, 5)
    for name in start:
        start[name][1] *= 1e8  # finite at first
    recipe = Recipe(0.3, 32, 2)
    ours = trained(emulated(), monkeypatch, x, y, recipe, 3, start=start)
    theirs = train(optumnist(), x, y, recipe, members=3, seed=5, start=start, fast=False)
    assert ours.diverged_at.tolist() == theirs.diverged_at.tolist()
    assert ours.diverged_at.tolist() == [-1, 1, -1]
    assert bool(ours.loss[1].isnan())
    assert bool(ours.loss[[0, 2]].isfinite().all())
    for name in theirs.params:
        torch.testing.assert_close(ours.params[name], theirs.params[name], rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_killed_run_goes_on_from_its_checkpoint_with_the_same_bits(emulated, monkeypatch, tmp_path):
    x, y = problem(64)
    recipe, launch, calls = Recipe(0.1, 64, 3), emulated(), []

    def killed_in_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        launch(*arguments)

    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(killed_in_the_third, monkeypatch, x, y, recipe, checkpoint=file, every=0)
    calls.clear()
    resumed = trained(lambda *a: calls.append(1) or launch(*a), monkeypatch, x, y, recipe, checkpoint=file)
    straight = trained(launch, monkeypatch, x, y, recipe)
    assert len(calls) == 1
    assert all(torch.equal(resumed.params[name], straight.params[name]) for name in straight.params)


@needs_compiler
@pytest.mark.parametrize("windows", [4, 8])
def test_threads_may_run_in_either_order_and_the_map_be_filled_in_either_stride(windows, emulated):
    for backwards in (False, True):
        launch = emulated(backwards=backwards, windows=windows)
        assert disagreement(launch, torch.device("cpu"), members=1) < TOLERANCE / 20


FAULTS = {
    "no barrier before the convolutions": (
        "        __syncthreads();  // the images",
        "        // the images",
    ),
    "no barrier before the head": ("        __syncthreads();  // the features", "        // the features"),
    "no barrier before the update": (
        "        __syncthreads();  // all partial",
        "        // all partial",
    ),
    "no decay": ("+ decay * w)", ")"),
    "a wrong mean": (
        "float share = sample < count ? 1.0f / count",
        "float share = sample < count ? 1.0f / 64",
    ),
    "lanes beyond the end count": (
        "sample < count ? 1.0f / count : 0.0f",
        "1.0f / count",
    ),
    "no shift in the gradient": (" + shift * (first[16] + second[16])", ""),
    "the first rate for every step": ("rates[step]", "rates[0]"),
    "one tap of the second filter": (
        "z[q] += w * map[MAP * (q / OUT + tap / 5) + q % OUT + tap % 5]",
        "z[q] += w * map[MAP * (q / OUT + tap / 5) + q % OUT + (tap % 5 + 1) % 5]",
    ),
    "half of the batch forgotten": ("+ s.partial2[k / TAPS][1][k % TAPS]", ""),
}


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_the_self_check_sees_a_planted_fault(fault, emulated):
    worst = max(
        disagreement(emulated(FAULTS[fault], backwards), torch.device("cpu"), members=1)
        for backwards in ((False, True) if fault.startswith("no barrier") else (False,))
    )
    assert not worst <= 3 * TOLERANCE


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here to compile for a card")
def test_machine_code_for_hopper_keeps_its_arrays_in_registers(tmp_path):
    defines = [f"-D{name}={value}" for name, value in fused.DEFINES.items()]
    command = [
        "nvcc",
        "-gencode=arch=compute_90,code=sm_90",
        "-std=c++17",
        "-Xptxas",
        "-v",
        "-cubin",
        *defines,
    ]
    done = subprocess.run(
        [*command, "-o", tmp_path / "kernel.cubin", fused.SOURCE], check=True, capture_output=True, text=True
    )
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in done.stdout + done.stderr


def test_the_kernel_compiles_while_the_program_runs():
    try:
        fused_launch.nvrtc()
    except RuntimeError as reason:
        pytest.skip(str(reason))
    assert fused_launch.compile(fused.SOURCE.read_text(), "sm_90", fused.DEFINES)[:4] == b"\x7fELF"
    with pytest.raises(RuntimeError, match="does not compile for sm_90"):
        fused_launch.compile("__device__ int x = y;", "sm_90", {})


def test_bytes_are_found_where_inputs_are_bytes_scaled_and_shifted():
    x, _ = problem(10)
    for scale, shift in ((1.0, 0.0), (1 / 0.3081, -0.1307 / 0.3081), (255.0, 0.0)):
        codes, a, b = as_bytes(x * scale + shift)
        assert torch.equal(codes.float(), (x * 255).round())
        torch.testing.assert_close(codes * a + b, x * scale + shift, rtol=1e-5, atol=1e-6 * scale)
    for other in (
        torch.rand(10, 1, 28, 28),
        torch.ones(10, 1, 28, 28),
        x * 0.5 + 0.001 * torch.rand(10, 1, 1, 1),
    ):
        assert as_bytes(other) is None
    assert as_bytes(torch.where(x > 0.9, torch.nan, x)) is None


def test_only_runs_that_the_kernel_computes_are_fused(monkeypatch):
    x, y = problem(10)
    right, launch = Recipe(0.1, 64, 1, weight_decay=0.1, schedule=Cosine()), lambda *_: None
    assert fit(optumnist(), x, y, right, 0, launch) is not None
    assert fit(optumnist(), x, y, right, 0) is None  # not on a CPU
    wrong_recipes = ({"momentum": 0.9}, {"optimiser": "adam"}, {"batch_size": 65}, {"loss": "mse"})
    for change in wrong_recipes:
        assert fit(optumnist(), x, y, replace(right, **change), 0, launch) is None
    assert fit(optumnist(), torch.rand(10, 1, 28, 28), y, right, 0, launch) is None
    assert fit(optumnist(), x.flatten(1), y, right, 0, launch) is None
    assert fit(optumnist().double(), x, y, right, 0, launch) is None
    wider, strided, biased = optumnist(), optumnist(), optumnist()
    wider[0] = nn.Conv2d(1, 2, 5, bias=False)
    strided[2] = nn.MaxPool2d(3, stride=2)
    biased[3] = nn.Conv2d(2, 10, 5, groups=2)
    leaky = optumnist()
    leaky[4] = type("ReLU", (nn.Module,), {"forward": lambda self, x: x})()  # another layer by the same name
    assert not any(map(is_optumnist, (wider, strided, biased, leaky, nn.Sequential(*list(optumnist())[:-1]))))


def test_a_kernel_that_disagrees_or_cannot_be_built_is_not_used_and_says_so(monkeypatch):
    device = torch.device("cpu")
    fused.checked.cache_clear()
    monkeypatch.setattr(fused, "build", lambda device: lambda *_: None)
    monkeypatch.setattr(fused, "disagreement", lambda kernel, device: 0.02)
    with pytest.warns(UserWarning, match="disagrees with the ordinary path by 2.0e-02"):
        assert fused.checked(device) is None
    fused.checked.cache_clear()
    monkeypatch.setattr(fused, "disagreement", lambda kernel, device: float("nan"))
    with pytest.warns(UserWarning, match="disagrees"):
        assert fused.checked(device) is None
    fused.checked.cache_clear()

    def broken(device):
        raise RuntimeError("the kernel does not compile.")

    monkeypatch.setattr(fused, "build", broken)
    with pytest.warns(UserWarning, match="cannot run here"):
        assert fused.checked(device) is None
    fused.checked.cache_clear()


def test_a_kernel_that_leaves_networks_out_is_an_error():
    x, y = problem(10)
    run = fit(optumnist(), x, y, Recipe(0.1, 64, 1), 0, lambda blocks, packed, losses, *_: losses[1:].zero_())
    weights = list(initial(optumnist(), 3, 0).values())
    with pytest.raises(RuntimeError, match="left 1 of 3 networks untrained"):
        run.epoch(weights, torch.arange(3), 0)


def test_the_work_of_a_sample_is_counted_as_by_hand_and_as_torch_counts():
    # 24 * 24 * 2 * 16, 16 * 10 * 25, 30 + 30, the second convolution's two ways back, twice the head, 128 * 16
    by_hand = 18_432 + 4_000 + 60 + 4_000 + 4_000 + 120 + 2_048
    assert fused_report.WORK.flops == 2 * by_hand
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        optumnist()(torch.zeros(1, 1, 28, 28))
    forward = [
        fused_report.WORK.multiply_adds[name] for name in ("first convolution", "second convolution", "head")
    ]
    unread = (25**2 - 24**2) * 2 * 16  # a row and a column that the pooling leaves out
    assert counter.get_total_flops() == 2 * (sum(forward) + unread)


def test_throughput_is_a_share_of_each_limit():
    card = fused_report.Card("a card", flops=67e12, bytes=4.3e12)
    report = fused_report.throughput(8192, 60, 60_000, 100.0, card)
    assert report["samples_per_s"] == pytest.approx(2.949e8, rel=1e-3)
    assert report["arithmetic_floor_s"] == pytest.approx(8192 * 60 * 60_000 * 65_320 / 67e12)
    assert 28 < report["arithmetic_floor_s"] < 30
    assert report["share_of_arithmetic"] == pytest.approx(report["arithmetic_floor_s"] / 100)
    assert report["share_of_memory"] == pytest.approx(8192 * 60 * 60_000 * 789 / 4.3e12 / 100)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_card_the_kernel_agrees_and_is_used():
    device = torch.device("cuda", torch.cuda.current_device())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused.checked(device) is not None
    x, y = problem(200)
    recipe = Recipe(0.1, 64, 2, weight_decay=2e-4)
    ours = train(optumnist(), x, y, recipe, members=300, seed=5, device=device)
    again = train(optumnist(), x, y, recipe, members=300, seed=5, device=device)
    theirs = train(optumnist(), x, y, recipe, members=300, seed=5, device=device, fast=False)
    assert all(torch.equal(ours.params[name], again.params[name]) for name in ours.params)
    assert not all(torch.equal(ours.params[name], theirs.params[name]) for name in ours.params)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-2, atol=0)
