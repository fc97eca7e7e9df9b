"""Training steps as CUDA graphs.

A step of a small network consists of about a hundred small kernels, and the GPU waits for the
processor to launch each of them. A graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

_one_at_a_time = Lock()  # torch records one graph of a process at a time

WARM_UP = 3  # steps without a graph, in which libraries and the optimizer allocate their memory


class GraphedSteps:
    """Training steps that are recorded once for each batch size and then replayed.

    Parameters
    ----------
    step : callable
        ``step(rows)`` makes one training step with these rows of the training set and returns a
        dict of tensors. It must not wait for the device.
    optimizer : torch.optim.Optimizer
        The optimizer of the step, which must support capturing.
    generator : torch.Generator
        Source of the random numbers of the step.
    """

    def __init__(
        self,
        step: Callable[[Tensor], dict[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ):
        self.step = step
        self.optimizer = optimizer
        self.generator = generator
        self.n_before = 0
        self.graphs: dict[int, tuple] = {}
        # The learning rate changes between the steps, so a graph has to read it from the device.
        self.learning_rates = [
            torch.zeros((), device=generator.device) for _ in optimizer.param_groups
        ]

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """Make a step; the next step overwrites the tensors that it returns."""
        if self.n_before < WARM_UP:
            self.n_before += 1
            return self._on_a_side_stream(rows)
        if len(rows) not in self.graphs:
            self.graphs[len(rows)] = self._record(rows)
        graph, own_rows, result = self.graphs[len(rows)]
        own_rows.copy_(rows)
        for own, group in zip(self.learning_rates, self.optimizer.param_groups, strict=True):
            own.fill_(group["lr"])
        graph.replay()
        return result

    def _on_a_side_stream(self, rows):
        stream = torch.cuda.Stream(rows.device)
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(stream):
            result = self.step(rows)
        torch.cuda.current_stream(rows.device).wait_stream(stream)
        return result

    def _record(self, rows):
        groups = self.optimizer.param_groups
        before = [{name: group[name] for name in ("lr", "capturable")} for group in groups]
        for own, group in zip(self.learning_rates, groups, strict=True):
            group.update(lr=own, capturable=True)
        own_rows = rows.clone()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        self.optimizer.zero_grad()  # so that the gradients are the graph's own
        try:
            with (
                _one_at_a_time,
                torch.cuda.device(rows.device),
                torch.cuda.graph(
                    graph,
                    stream=torch.cuda.Stream(rows.device),
                    capture_error_mode="thread_local",
                ),
            ):
                result = self.step(own_rows)
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)
        return graph, own_rows, result
