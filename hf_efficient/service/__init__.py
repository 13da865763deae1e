"""An app served over HTTP: batches of what waits, an API, a page, and a server that stops gracefully."""

from hf_efficient.service.batching import Batcher
from hf_efficient.service.server import ServiceSettings, open_app, serve

__all__ = ["Batcher", "ServiceSettings", "open_app", "serve"]
