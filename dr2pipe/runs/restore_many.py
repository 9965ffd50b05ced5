"""``dr2pipe restore-many``: the restoration of :mod:`dr2pipe.runs.restore` over many machines."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from dr2pipe.core.config import stable_hash, to_dict, to_yaml
from dr2pipe.core.errors import ClusterError, ConfigError, StorageError
from dr2pipe.core.lease import Lease
from dr2pipe.core.markers import MARKER, marked, parse_marker
from dr2pipe.core.processes import stop_signals_caught
from dr2pipe.core.records import FAILURES, MANIFEST
from dr2pipe.core.storage import Storage, StoredFile, absolute_url, unreachable
from dr2pipe.runs import many, many_plan
from dr2pipe.runs.batches import RunSummary
from dr2pipe.runs.many import Block, Item, ManyConfig
from dr2pipe.runs.many_report import REPORT, SUMMARY, Progress, write_reports
from dr2pipe.runs.on_ray import LoadSteps, Pool
from dr2pipe.runs.photos import check_listed
from dr2pipe.runs.ray_cluster import cluster
from dr2pipe.runs.restore import describe_run, load_steps
from dr2pipe.runs.restore_config import check_config
from dr2pipe.runs.result_folders import RESULT_FOLDERS
from dr2pipe.runs.shards import QUARANTINED, RECORDS, read_rows, shard_name, write_shard
from dr2pipe.runs.steps import Steps

logger = logging.getLogger(__name__)

KIND = "restore-many"
# What a block is divided by in each round. Blocks whose workers die come again in the next one; a
# picture that is lost in all rounds, at last alone, is quarantined.
_ROUNDS = (1, 8, None)  # None: pictures alone
_MOST_STORE_ERRORS = 20  # one after another: it is down
_MOST_LOST_ALONE = 20  # more are no poison: the cluster itself loses its workers


def restore_many(config: ManyConfig, *, load: LoadSteps = load_steps) -> RunSummary:
    """Restore what is missing or changed; counts over all pictures of the input.

    Args:
        config: the settings.
        load: gives the steps with the networks on a device; called in the actors.

    Raises:
        Dr2pipeError: an invalid setting, missing weights, a store that cannot be reached, or a
            cluster that lacks what is asked for; nothing was restored then.
    """
    check_config(config.restore)
    # Workers may run in another folder.
    restore = dataclasses.replace(
        config.restore,
        input=absolute_url(config.restore.input),
        output=absolute_url(config.restore.output),
    )
    config = dataclasses.replace(config, restore=restore)
    if config.restore.repair.mask is not None or config.restore.pages != "first":
        raise ConfigError("restore-many takes no masks (repair.mask), and no pages=all")
    if min(config.block_pictures, config.cpus_per_actor, config.actors or 1) < 1:
        raise ConfigError("block, actors and cpus-per-actor must be at least 1")
    gpus = config.gpus_per_actor
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        raise ConfigError(f"gpus-per-actor={gpus:g}: 0, a part of 1, or a whole number")
    output = Storage(config.restore.output)
    _check_marker(output, config)
    items = many_plan.list_pictures(config.restore, output)
    check_listed(config.restore, [item.path for item in items])
    lease = Lease(output, _about(config), joins=config.join, beat_s=config.beat_s)
    with lease, cluster(config) as is_here:
        pool = Pool.of(config, is_here=is_here)
        return _run(items, config, pool.describe(config, load), pool, load, lease)


def _about(config: ManyConfig) -> dict[str, Any]:
    """What runs must have in common to share their work."""
    settings = to_dict(config.restore)
    input_ = settings.pop("input")
    return {
        "input": input_,
        "settings": stable_hash(settings),
        "--block": config.block_pictures,
        "--retries": config.retries,
    }


def _run(
    items: list[Item],
    config: ManyConfig,
    steps: Steps,
    pool: Pool,
    load: LoadSteps,
    lease: Lease,
) -> RunSummary:
    output = lease.storage
    if lease.is_first:
        output.remove_partial()
    description = {"kind": KIND, "inputs": [config.restore.input]}
    description |= describe_run(config.restore, steps)
    output.write(MARKER, to_yaml(marked(description, steps.outputs)).encode())
    stored = output.find()
    blocks, done, given_up = many_plan.plan(
        items,
        steps,
        read_rows(output, stored),
        stored,
        listed_name=output.listed_name,
        block_pictures=config.block_pictures,
        retries=config.retries,
    )
    progress = Progress(len(items), done, given_up, config.price)
    # Two runs meet in the middle.
    if not lease.is_first:
        blocks.reverse()
    _run_rounds(blocks, config, steps, pool, load, lease, progress, stored)
    if not lease.is_lost:  # of several runs, the report of the last one stays
        write_reports(output, progress, describe_run(config.restore, steps))
    return progress.summary


def _run_rounds(
    blocks: list[Block],
    config: ManyConfig,
    steps: Steps,
    pool: Pool,
    load: LoadSteps,
    lease: Lease,
    progress: Progress,
    stored: Mapping[str, StoredFile],
) -> None:
    stop: list[bool] = []

    def request_stop() -> None:
        stop.append(True)
        logger.warning("stopping when the next block is done; once more ends at once")

    with progress, stop_signals_caught(request_stop):
        for divisor in _ROUNDS:
            most = 1 if divisor is None else max(1, config.block_pictures // divisor)
            items = [item for block in blocks for item in block.items]
            if divisor != 1:
                logger.warning("not done yet, so again: %d", len(items))
                blocks = [
                    many_plan.block_of(items[i : i + most], steps, stored)
                    for i in range(0, len(items), most)
                ]
            waiting = {block.shard: block for block in blocks}
            in_store: list[StorageError] = []
            for block in pool.run(blocks, config, steps, load, alone=most == 1):
                if isinstance(block.error, StorageError):  # as if its worker had died
                    in_store.append(block.error)
                    logger.warning("%s", block.error)
                elif block.error is not None:
                    raise block.error
                else:
                    in_store.clear()
                    progress.add(block)
                    waiting.pop(block.shard, None)
                if stop or lease.is_lost:
                    progress.summary.interrupted = True
                    return
                if len(in_store) == _MOST_STORE_ERRORS:
                    raise in_store[-1]
            blocks = list(waiting.values())
            if not blocks:
                return
        if in_store:
            raise in_store[-1]
    lost = [item for block in blocks for item in block.items]
    none_was_ever_restored = progress.summary.restored + progress.summary.skipped == 0
    all_are_lost = len(lost) > 1 and none_was_ever_restored
    if all_are_lost or len(lost) > max(_MOST_LOST_ALONE, progress.summary.restored):
        raise ClusterError(f"{len(lost)} pictures were lost with their workers: see Ray's logs")
    error = RuntimeError(f"its worker died {len(_ROUNDS)} times, at last with this picture alone")
    rows = [many.failed_row(item, error, steps, QUARANTINED) for item in lost]
    for row in rows:
        row.attempts = max(row.attempts, len(_ROUNDS))
        logger.warning("%s was quarantined: %s", row.path, error)
    name = shard_name([(row.path, row.version, row.attempts) for row in rows], "quarantined")
    write_shard(Storage(config.restore.output), name, rows)
    progress.add(dataclasses.replace(blocks[0], rows=rows))


def _check_marker(output: Storage, config: ManyConfig) -> None:
    try:
        marker = parse_marker(output.read(MARKER))
    except FileNotFoundError:
        known = {MANIFEST, FAILURES, RECORDS, SUMMARY, REPORT, *RESULT_FOLDERS}
        foreign = sorted(known & {name.partition("/")[0] for name in output.find()})
        if foreign:
            raise ConfigError(
                f"{output.url} holds {', '.join(foreign)}, which no run of this command wrote; "
                "choose another"
            ) from None
        return
    except Exception as error:
        raise unreachable(output.url, error) from error
    if marker is None or marker.get("kind") != KIND:
        raise ConfigError(f"{output.url} holds the results of another command; choose another")
    if config.restore.input not in (marker.get("inputs") or []):
        raise ConfigError(f"{output.url} holds the results of another input; choose another")
