"""Numbers for other programs: Prometheus, TensorBoard, Weights & Biases.

::

    exposition.py    numbers as Prometheus reads them
    endpoint.py      served by this process
    hooks.py         what a program reports, handed to TensorBoard or W&B

The whole system's numbers, read from the broker, are in :mod:`agentlace.operating.prometheus`.
"""

from agentlace.metrics.endpoint import Endpoint, serve
from agentlace.metrics.hooks import TensorBoard, Wandb

__all__ = ["Endpoint", "TensorBoard", "Wandb", "serve"]
