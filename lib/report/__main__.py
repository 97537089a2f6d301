"""``python -m lib.report``: from a folder of checkpoints and a file of examples to one page."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from safetensors import SafetensorError

from lib import device
from lib.report import checkpoints
from lib.report.builder import BuilderProblem, builder
from lib.report.data_source import IMAGE_SIZE, NORMALISATIONS, TASKS
from lib.report.everything import Report, report
from lib.report.page import page, write
from lib.report.parts import source
from lib.report.sentences import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 where what was asked for was reported, 1 where nothing could be, or the examples that were given could not be used."""
    asked = _parser().parse_args(arguments)
    started = time.perf_counter()
    try:
        build = builder(asked.builder, asked.builder_args)
        models = checkpoints.read(asked.checkpoints, build).to(device.pick(asked.device))
        shape = _shape(asked.input_shape)
    except (
        BuilderProblem,
        checkpoints.NothingReadable,
        FileNotFoundError,
        RuntimeError,
        ValueError,
    ) as problem:
        print(problem, file=sys.stderr)
        return 1
    found = report(
        models,
        source(asked.data or "", asked.task, image_size=asked.image_size, normalise=asked.normalise),
        examples=asked.examples,
        input_shape=shape,
        seed=asked.seed,
        tell=lambda part: print(
            f"{time.perf_counter() - started:5.0f} s  {part} …", file=sys.stderr, flush=True
        ),
    )
    for line in summary(found):
        print(line)
    command = f"python -m lib.report {shlex.join(arguments if arguments is not None else sys.argv[1:])}"
    html = page(found, title=f"{len(models)} networks: {type(models.net).__name__}", how=command)
    try:
        written = write(asked.out, html)
    except OSError as problem:
        print(
            f"the report cannot be written to {asked.out} ({problem}): name another --out.", file=sys.stderr
        )
        return 1
    print(f"The report ({time.perf_counter() - started:.0f} s): {written}")
    if asked.merged:
        print(_saved(found, asked.merged))
    unread = asked.data is not None and found.halves is None
    if unread:
        print("Nothing was scored, since the examples could not be used.", file=sys.stderr)
    return int(found.empty or unread)


def summary(found: Report) -> list[str]:
    """A few lines for the terminal."""
    lines = [say(found.models)[0], *(f"Refused: {each}" for each in found.models.refused)]
    if "data" in found.problems:
        lines.append(f"Data: {found.problems['data']}")
    lines += [found.headline] if found.headline else []
    lines += [say(found.ensemble)[0]] if found.ensemble is not None else []
    if found.structure is not None and found.structure.why_not:
        lines.append(say(found.structure)[0])
    lines += [f"Not measured: {name}: {why}" for name, why in found.problems.items() if name != "data"]
    lines += [f"- {each}" for each in found.advice]
    return lines


def _saved(found: Report, path: str) -> str:
    if found.merging is None:
        return f"No merged network was saved to {path}: merging was not measured."
    try:
        return (
            f"The {found.merging.chosen} of the networks was saved: {found.merging.save(path)} (safetensors)."
        )
    except (OSError, SafetensorError) as problem:
        return f"No merged network was saved to {path}: {problem}"


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ValueError(f"--input-shape {text!r} is no shape of one input: write 3,32,32.")
    return found


def _least(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} will not do: write a whole number from {least} on.")
        return int(text)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib.report",
        description="What the symmetries of your networks are, whether they can be merged, what they are worth together.",
    )
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINTS",
        help="a folder of .safetensors, .pt, .pth, .bin, .ckpt, or the files",
    )
    add(
        "--builder",
        required=True,
        help="module:function that returns the network, say torchvision.models:resnet18",
    )
    add("--builder-args", default="{}", help="its keywords, a JSON object")
    add("--data", help="an .npz with inputs and targets, or a folder with one subfolder of pictures a class")
    add("--task", choices=TASKS, default="classification")
    add("--out", default="report.html", help="where the page goes")
    add("--examples", type=_least(4), help="how many are used; as many as a few minutes allow by default")
    add("--merged", metavar="FILE", help="save the merged network there, as safetensors")
    add("--image-size", type=_least(1), default=IMAGE_SIZE, help="pictures are resized to this")
    add("--normalise", choices=tuple(NORMALISATIONS), help="bring pictures to this set's mean and deviation")
    add("--input-shape", help="of one input, where no data say it: 3,32,32")
    add("--device", default="auto")
    add("--seed", type=_least(0), default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
