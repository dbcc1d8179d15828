"""A web service of a model, and its explorer: ``wals-gpu serve``, or an ASGI application for any server.

Needs ``pip install 'wals_gpu[serve]'``. See docs/serving.md.
"""

try:
    import fastapi as _fastapi  # noqa: F401  (what is missing is said in one place)
    import prometheus_client as _prometheus_client  # noqa: F401
except ImportError as error:
    raise ModuleNotFoundError(
        f"wals_gpu.serve needs FastAPI and prometheus-client ({error}): pip install 'wals_gpu[serve]'", name=error.name
    ) from error

from wals_gpu.serve.app import make_app
from wals_gpu.serve.limits import Limits

__all__ = ["Limits", "make_app"]
