"""Serving the page: where, for whom, and what is refused."""

from __future__ import annotations

import atexit
import ipaddress
import logging
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError, FolderInUseError, describe_error
from dr2pipe.core.extras import needs_extra
from dr2pipe.web.visits import Limits, Visits, describe_disk
from dr2pipe.web.workshop import Workshop

logger = logging.getLogger(__name__)

_PREFIX = "dr2pipe_web_"


@dataclass
class ServerConfig:
    """Where the page is served.

    Attributes:
        host: address that it listens on; others than loopback need a user and a password.
        port: 0 takes any free one.
        user: name that visitors log in with, or None.
        password: that goes with it.
        preset: that is chosen at first.
        limits: of uploads.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    user: str | None = None
    password: str | None = None
    preset: str = "default"
    limits: Limits = field(default_factory=Limits)


def serve(config: ServerConfig) -> Any:
    """Begin to serve the page; returns gradio's blocks, whose ``block_thread`` waits for Ctrl-C.

    Raises:
        ConfigError: a host without a password, a port in use, or an unknown preset.
        MissingPackageError: gradio is not installed.
    """
    check(config)
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = files.lock_folder(folder)  # until the process ends, however it does
    atexit.register(_remove, folder, lock)
    # Uploads, and what gradio copies, are in the same folder, which goes at the end.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with needs_extra("web"):
        import gradio as gr

        from dr2pipe.web.layout import STYLE, build_page
        from dr2pipe.web.page import Page
    workshop = Workshop(config.limits)
    visits = Visits(folder)
    visits.sweep_for_ever()
    page = Page(workshop, visits)
    blocks = build_page(page, preset=config.preset)
    blocks.queue(default_concurrency_limit=4, max_size=64)
    workshop.warm_up(config.preset)
    local = ["system-ui", "sans-serif"]
    try:
        blocks.launch(
            server_name=config.host,
            server_port=config.port or None,
            auth=(config.user, config.password) if config.user and config.password else None,
            share=False,
            max_file_size=config.limits.megabytes * 1_000_000,
            prevent_thread_lock=True,
            app_kwargs={"exception_handlers": {OSError: _full_disk}},
            show_error=False,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            # Fonts of the system: nothing is loaded from other servers.
            theme=gr.themes.Soft(font=local, font_mono=["ui-monospace", "monospace"]),
            css=STYLE,
        )
    except OSError:
        check(config)  # the port may have been taken while the networks were loaded
        raise
    return blocks


def _remove(folder: Path, lock: FileLock) -> None:
    lock.release()  # first: some systems delete no open file
    shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """Delete what servers left that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Without a lock's file it is another server's that begins, or another user's.
        with suppress(FolderInUseError, OSError):
            if (folder / files.LOCK_NAME).is_file():
                _remove(folder, files.lock_folder(folder))


def check(config: ServerConfig) -> None:
    """See that the page may be served so.

    Raises:
        ConfigError: it may not; the message says what to do.
    """
    if (config.user is None) != (config.password is None) or "" in (config.user, config.password):
        raise ConfigError("--user and --password belong together, and neither is empty")
    if config.user is None and not _is_loopback(config.host):
        raise ConfigError(
            f"everybody who reaches {config.host} could use the page: give --user and --password, or "
            "leave --host out"
        )
    if not 0 <= config.port < 1 << 16:
        raise ConfigError(f"--port {config.port} must lie in 0..65535")
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((config.host, config.port))
    except OSError as error:
        raise ConfigError(
            f"{config.host} port {config.port} cannot be used ({error.strerror or error}): another program "
            "may be there. Choose another one, for instance --port 7861"
        ) from None


def _full_disk(request: Any, error: Exception) -> Any:
    """The answer to an upload that gradio could not write."""
    from starlette.responses import PlainTextResponse

    assert isinstance(error, OSError)
    logger.warning("%s", describe_error(error))
    return PlainTextResponse(f"The upload cannot be kept: {describe_disk(error)}.", 507)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
