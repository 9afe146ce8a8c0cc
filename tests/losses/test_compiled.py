"""Heads in a compiled step, under autocast with 16-bit embeddings, and on a CUDA device."""

import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.contracts.heads import HEADS, check_alike, gradient_of
from tests.helpers import double_points as points
from tests.helpers import unchecked

LABELS = torch.arange(12) % 4
# torch's own, of each function with a gradient of its own that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")
every_head = pytest.mark.parametrize("name", HEADS)
# Inductor needs a compiler for C++ and Python's headers.
BUILDS = shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()
FORMS = {row.make if row.tiled else type(row.head()): name for name, row in reversed(HEADS.items())}
STEPS = [(name, backend) for name in FORMS.values() for backend in ("eager", "aot_eager")]


def images(dtype=torch.float32):
    return points(12, 6, seed=1, dtype=dtype)


def gradients(model, head, step, x):
    """The loss, and the gradients of the model and of the head."""
    for module in (model, head):
        module.zero_grad()
    loss = step(x)
    loss.backward()
    return [loss.detach(), *(v.grad.clone() for module in (model, head) for v in module.parameters())]


def check_compiled(name, backend):
    """A step, model and head, has the same loss and gradients when it is compiled."""
    torch.compiler.reset()
    torch.manual_seed(0)
    row, model = HEADS[name], nn.Linear(6, 4)
    head = row.head().float()

    def step(x):
        return 2 * head(nn.functional.normalize(model(x)), LABELS)

    expected = gradients(model, head, step, images())
    with unchecked():  # the checker's own code is not to be compiled
        found = gradients(model, head, torch.compile(step, backend=backend), images())
    for u, v in zip(found, expected, strict=True):  # a gradient may be a small sum of large terms
        torch.testing.assert_close(u, v, rtol=1e-5, atol=1e-5 * max(1.0, float(v.abs().max())))
    assert expected[1].any()


# What the compiler looks at, and what it is made of.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(("name", "backend"), STEPS)
def test_a_compiled_step_has_the_plain_loss_and_gradient(name, backend):
    check_compiled(name, backend)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning")
@pytest.mark.skipif(not BUILDS, reason="no C++ compiler, or no headers of Python")
@pytest.mark.parametrize("name", ["hinge", "CosFace"])
def test_a_step_of_generated_code_has_the_plain_loss_and_gradient(name):
    check_compiled(name, "inductor")


class Wrong(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head, self.calls = head, 0

    def forward(self, *call):
        self.calls += 1
        return self.head(*call) + self.calls


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_head_that_is_another_when_compiled_is_found_out(monkeypatch):
    row = HEADS["hinge"]
    wrong = lambda **options: Wrong(row.head(**options))  # noqa: E731
    monkeypatch.setitem(HEADS, "wrong", replace(row, make=wrong, options={}))
    with pytest.raises(AssertionError):
        check_compiled("wrong", "eager")


@every_head
def test_bf16_embeddings_under_autocast_give_the_float32_loss_of_the_same_numbers(name):
    row, model = HEADS[name], nn.Linear(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        x = model(images())
        assert x.dtype == torch.bfloat16
        loss, grad = gradient_of(row.head().float(), x, LABELS)
    expected, expected_grad = gradient_of(row.head().float(), x.float(), LABELS)
    assert loss.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    assert torch.equal(loss, expected)
    assert torch.equal(grad, expected_grad.bfloat16())
    assert grad.isfinite().all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_head
def test_a_cuda_device_gives_the_loss_and_gradient_of_the_cpu(name):
    row, x = HEADS[name], points(40, 4, seed=2, dtype=torch.float32)
    labels = torch.arange(40) % 4
    head = row.head().float()
    lists = [None, row.everything(labels)] if row.lists else [None]
    for mined in lists:
        expected = gradient_of(head.cpu(), x, labels, mined=mined)
        on_device = None if mined is None else [v.cuda() for v in mined]
        found = gradient_of(head.cuda(), x.cuda(), labels.cuda(), mined=on_device)
        for u, v in zip(found, expected, strict=True):
            torch.testing.assert_close(u.cpu(), v, rtol=1e-4, atol=1e-5)
        with torch.autocast("cuda", torch.float16):
            inside = gradient_of(head, x.cuda(), labels.cuda(), mined=on_device)
        check_alike(inside, found)
