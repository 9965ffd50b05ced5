"""An object store on loopback that refuses or stalls some of the requests: moto's S3 server."""

import contextlib
import itertools
import logging
import os
import threading
import time


class Troubled:
    """A web application that refuses or stalls some of the requests."""

    def __init__(self, app, *, refuse_every, stall_every, stall_s):
        self.app, self.stall_s = app, stall_s
        self.refuse_every, self.stall_every = refuse_every, stall_every
        self.requests, self.refused, self.stalled = itertools.count(1), 0, 0

    def __call__(self, environment, respond):
        number = next(self.requests)
        if self.refuse_every and number % self.refuse_every == 0:
            self.refused += 1
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            respond("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"]
        if self.stall_every and number % self.stall_every == 0:
            self.stalled += 1
            time.sleep(self.stall_s)
        return self.app(environment, respond)


@contextlib.contextmanager
def store_here(**trouble):
    """moto's S3 server on loopback; the environment leads fsspec's S3 there."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Troubled(DomainDispatcherApplication(create_backend_app), **trouble)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield app
    finally:
        server.shutdown()
        thread.join()
