"""The web page of ``dr2pipe web``: for people who restore a photo without a terminal."""

from dr2pipe.web.server import ServerConfig, serve

__all__ = ["ServerConfig", "serve"]
