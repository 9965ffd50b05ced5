"""The commands: read settings, make one call, print the outcome; each returns its exit code.

Modules that import torch are imported by the command that needs them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_file
from dr2pipe.core.records import EXIT_DONE, EXIT_INTERRUPTED, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from dr2pipe.evaluation.protocol import Protocol
    from dr2pipe.evaluation.sweep import SweepConfig
    from dr2pipe.runs.batches import RunSummary
    from dr2pipe.runs.options import RunOptions

    _Config = TypeVar("_Config", Protocol, SweepConfig)


def restore_with_options(options: Namespace) -> int:
    """Restore as the options of the command line say; ``--set`` comes last."""
    given = {
        "input": options.input,
        "output": options.output,
        "repair.mask": options.mask,
        "repair.exemplar": options.exemplar,
        "bits": options.bits,
        "colour": options.colour,
        "contrast": options.contrast,
        "scale": options.scale,
        "pages": options.pages,
        "format": options.format,
        "quality": options.quality,
        "identity.minimum": options.min_identity,
        "identity.reference": options.reference,
    }
    overrides = [f"{name}={value}" for name, value in given.items() if value is not None]
    overrides += ["faces.mode=aligned"] if options.aligned else []
    overrides += [
        f"{name}=true" for name in ("merge", "verify", "strict") if getattr(options, name)
    ]
    preset = options.config or find_file("configs/restore", options.preset, what="preset")
    return restore(preset, [*overrides, *options.set])


def restore(
    config_path: str | Path,
    overrides: Sequence[str],
) -> int:
    """Restore as a YAML file and ``key=value`` overrides say."""
    from dr2pipe.runs.restore import RestoreConfig, describe_notes, restore_folder

    config = load_config(RestoreConfig, config_path, overrides)
    quiet_libraries()
    code = _tell(restore_folder(config), "restored", config.output)
    if _is_main_process():
        for line in describe_notes(config.output):
            print(line)
    return code


def restore_many(options: Namespace) -> int:
    """Restore on a Ray cluster, over object storage."""
    from dr2pipe.runs.many import ManyConfig
    from dr2pipe.runs.restore import RestoreConfig
    from dr2pipe.runs.restore_many import restore_many as run

    path = find_file("configs/restore", options.preset, what="preset")
    given = [f"input={options.input}", f"output={options.output}"]
    given += ["faces.mode=aligned"] if options.aligned else []
    config = load_config(RestoreConfig, path, [*given, *options.set])
    quiet_libraries()
    many = ManyConfig(
        config,
        actors=options.actors,
        gpus_per_actor=options.gpus_per_actor,
        cpus_per_actor=options.cpus_per_actor,
        block_pictures=options.block,
        retries=options.retries,
        join=options.join,
        price=options.price,
    )
    summary = run(many)
    counts = f"{summary.restored} restored, {summary.skipped} already done"
    print(f"{counts}, {summary.failed} failed -> {options.output}")
    print(
        f"report, numbers and reasons: report.html, summary.json and records/ in {options.output}"
    )
    return summary.exit_code


def _tell(summary: RunSummary, what: str, output: str) -> int:
    """Print the counts of a folder run; returns its exit code."""
    if _is_main_process():
        counts = f"{summary.restored} {what}, {summary.skipped} already done"
        print(f"{counts}, {summary.failed} failed -> {output}")
        if summary.warned:
            print(f"{summary.warned} with a warning, see {Path(output) / 'manifest.jsonl'}")
        if summary.failed:
            print(f"the reasons are in {Path(output) / 'failures.jsonl'}")
    return summary.exit_code


def train(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Train the recipe of a YAML file, or of one of configs/train by its name."""
    from dr2pipe.training.recipes import run_recipe

    return run_recipe(_find_config("train", config_path), overrides)


def export(options: Namespace) -> int:
    """Write what a running or stopped training has learned."""
    from dr2pipe.training.recipes import export_run

    quiet_libraries()
    step = export_run(options.run_folder, options.model)
    print(f"step {step} -> {options.model}")
    return EXIT_DONE


def make_coarse(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Make coarse faces for training an enhancer."""
    from dr2pipe.runs.coarse import CoarseConfig
    from dr2pipe.runs.coarse import make_coarse as run

    config = load_config(CoarseConfig, _find_config("coarse", config_path), overrides)
    quiet_libraries()
    summaries = run(config)
    if _is_main_process():
        for number, s in enumerate(summaries):
            counts = f"{s.restored} made, {s.skipped} already done, {s.failed} failed"
            print(f"variant {number}: {counts}")
            if s.failed:
                variant = f"variant_{number:02d}"
                print(f"the reasons are in {Path(config.output) / variant / 'failures.jsonl'}")
    codes = {summary.exit_code for summary in summaries}
    if len(codes) == 1:
        return codes.pop()
    return EXIT_INTERRUPTED if EXIT_INTERRUPTED in codes else EXIT_SOME_FAILED


def cut_faces(options: Namespace) -> int:
    """Aligned faces of photos, for training."""
    from dr2pipe.faces import DetectorConfig
    from dr2pipe.runs.cut_faces import CutConfig
    from dr2pipe.runs.cut_faces import cut_faces as run

    faces = options.faces
    detector = DetectorConfig() if faces is None else DetectorConfig("file", faces)
    config = CutConfig(
        options.input, options.output, options.size, options.min_px, detector, _run_options(options)
    )
    return _tell(run(config), "photos searched", options.output)


def degrade(options: Namespace) -> int:
    """Degraded copies of a folder, or one face under every unseen family."""
    from dr2pipe.runs.degrade import DegradeConfig, degrade_folder, write_sheet

    if options.sheet:
        if options.severity is not None or options.size is not None:
            raise ConfigError("--sheet shows all severities at one size: no --severity, no --size")
        write_sheet(options.input, options.output, seed=options.seed)
        print(f"every unseen family at severities 1..5 -> {options.output}")
        return EXIT_DONE
    if options.degradation is None:
        raise ConfigError("name a degradation with --with, or ask for a --sheet")
    config = DegradeConfig(
        options.input,
        options.output,
        options.degradation,
        severity=options.severity,
        size=options.size,
        seed=options.seed,
        options=_run_options(options),
    )
    return _tell(degrade_folder(config), "degraded", options.output)


def inpaint(options: Namespace) -> int:
    """Fill the holes of faces in the style of exemplars."""
    from dr2pipe.restoration.inpainter import InpainterConfig
    from dr2pipe.runs.inpaint import InpaintConfig, inpaint_folder

    quiet_libraries()
    config = InpaintConfig(
        options.input,
        options.mask,
        options.exemplar,
        options.output,
        InpainterConfig(options.model, options.style_encoder),
        mix_with=options.mix_with,
        mix_at=options.mix_at,
        samples=options.samples,
        seed=options.seed,
        options=_run_options(options),
    )
    return _tell(inpaint_folder(config), "inpainted", options.output)


def _run_options(options: Namespace) -> RunOptions:
    from dr2pipe.runs.options import RunOptions

    return RunOptions(options.pages, options.merge, options.verify)


def evaluate(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Run the study of a protocol; prints the tables of means."""
    from dr2pipe.evaluation.evaluate import evaluate as run
    from dr2pipe.evaluation.protocol import Protocol

    return _study(run, load_config(Protocol, _find_config("protocols", config_path), overrides))


def sweep(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Try a grid of DR2's settings; prints the best ones."""
    from dr2pipe.evaluation.sweep import SweepConfig
    from dr2pipe.evaluation.sweep import sweep as run

    return _study(run, load_config(SweepConfig, _find_config("sweep", config_path), overrides))


def _study(run: Callable[[_Config], str | None], config: _Config) -> int:
    quiet_libraries()
    found = run(config)
    if found is None:
        return EXIT_INTERRUPTED
    if _is_main_process():
        print(found)
        print(f"report, every value and the settings: {config.output}")
    return EXIT_DONE


def fit_auto(options: Namespace) -> int:
    """Fit the automatic setting of DR2 on sweeps, and print what it scores on faces left out."""
    from dr2pipe.evaluation.fit_auto import fit_from_sweeps

    print(fit_from_sweeps(options.sweep, options.output))
    return EXIT_DONE


def fit_niqe(options: Namespace) -> int:
    """Write the statistics of clean pictures, which the metric ``niqe`` compares with."""
    from dr2pipe.evaluation.pristine import fit_pristine

    print(fit_pristine(options.input, options.output, size=options.size, block_px=options.block))
    return EXIT_DONE


def embed(options: Namespace) -> int:
    """Vectors of how a picture or those of a folder are degraded, and a map of them."""
    from dr2pipe.runs.embed import embed_folder

    output = options.output
    embedded = embed_folder(options.input, output, options.model, size=options.size)
    for path, reason in embedded.failures.items():
        print(f"{path}: {reason}", file=sys.stderr)
    print(f"{len(embedded.paths)} pictures -> {output}/vectors.npz, {output}/map.png")
    return EXIT_SOME_FAILED if embedded.failures else EXIT_DONE


def _find_config(kind: str, name: str | Path) -> Path:
    """A file of ``configs/<kind>`` by its name, or any YAML file by its path."""
    return find_file(f"configs/{kind}", str(name), what="configuration file")


def verify(options: Namespace) -> int:
    """Make a result again from its original and compare the pixels; 3 where they differ."""
    from dr2pipe.runs.verify import verify as made_again

    quiet_libraries()
    verdict = made_again(options.result, options.original, options.set)
    print(verdict)
    return EXIT_DONE if verdict.is_same else EXIT_SOME_FAILED


def report(options: Namespace) -> int:
    """Write the page about a run of ``restore``, and print where it is."""
    from dr2pipe.evaluation.report.runs import write_run_report

    print(write_run_report(options.run_folder, source=options.input))
    return EXIT_DONE


def doctor(options: Namespace) -> int:
    """Versions, devices, and what will be used."""
    from dr2pipe.runs.doctor import report

    print(report())
    return EXIT_DONE


def benchmark(options: Namespace) -> int:
    """Time a preset on this machine."""
    from dr2pipe.cli.benchmark import PARTS, Benchmark
    from dr2pipe.cli.benchmark_report import ratios, read_report, table, write_report
    from dr2pipe.runs.restore_config import RestoreConfig, check_config

    unused = ["input=unused", "output=unused", "faces.mode=aligned"]
    path = find_file("configs/restore", options.preset, what="preset")
    config = load_config(RestoreConfig, path, [*unused, *options.set])
    check_config(config)
    other = None if options.against is None else read_report(options.against)
    quiet_libraries()
    report = Benchmark(
        config,
        precisions=options.precisions,
        batch_sizes=options.batch_sizes,
        input=options.input,
        pictures=options.pictures,
        size=options.size,
        parts=options.parts or PARTS,
    ).run()
    print(table(report))
    if options.json is not None:
        write_report(options.json, report)
    if other is not None:
        print(f"\nagainst {options.against}:\n{ratios(report, other)}")
    return EXIT_DONE


def quiet_libraries() -> None:
    """Loading bars and notes of diffusers would hide the run's own progress."""
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


def _is_main_process() -> bool:
    from dr2pipe.core.processes import process_state

    return bool(process_state().is_main_process)
