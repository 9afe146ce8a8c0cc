"""A distance and a model that end the first process that uses them, other than the one that made them."""

import os
import signal

import torch


class Dying:
    """Ends one process.

    Args:
        mark: a file that the one process makes, so that there is no second one.
        pipe: a named pipe that it opens for writing before it ends, or None.
    """

    def __init__(self, mark, pipe=None):
        self.mark, self.pipe, self.parent = str(mark), pipe and str(pipe), os.getpid()

    def end_one_process(self):
        if os.getpid() == self.parent:
            return
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        if self.pipe is not None:
            os.open(self.pipe, os.O_WRONLY)
        os.kill(os.getpid(), signal.SIGKILL)


class DyingDistance(Dying):
    """The squared Euclidean distance, by differences alone."""

    differentiable = False
    waited = False

    def await_end(self):
        """In the process that made this, wait once until the other one has ended."""
        if self.pipe is not None and os.getpid() == self.parent and not self.waited:
            self.waited = True
            with open(self.pipe) as pipe:
                pipe.read()

    def prepare(self, embeddings):
        self.end_one_process()
        return embeddings.float()

    def tile(self, x, y):
        self.await_end()
        return (x[:, None] - y[None]).square().sum(2)

    def paired(self, x, y):
        return (x - y).square().sum(1)


class DyingModel(Dying):
    """The mean colour."""

    def __call__(self, images):
        self.end_one_process()
        return torch.as_tensor(images).mean((2, 3))
