"""Distances between embeddings: smaller is always nearer, and equal rows are 0 apart (save by `dot`).

A distance is three functions. `prepare` turns embeddings into features, once a call; `tile` compares
every row with every column; `paired` compares row with row. Features are float32, or float64 where the
embeddings are float64: half precision and autocast never reach a distance.

‖x‖² + ‖y‖² − 2x·y is fast, but it loses half the digits of near duplicates (in float32, unit vectors 10⁻⁴
apart come out anywhere from 0 to 10⁻³ apart), and its last bits depend on how the product is cut into blocks.
So `tile` uses it where it is precise to 10⁻⁵, and differences elsewhere: a loss needs no more. Whatever is
chosen by a distance is chosen by `exact`, which uses differences throughout. Where embeddings stand on a
grid, such as small whole numbers, both are the same numbers, and squared distances are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import threshold

from tercet.core.checks import as_choice, promised, refusal
from tercet.pairwise.closed_forms import EuclideanForm, ProductForm
from tercet.pairwise.differences import mapped_rows
from tercet.pairwise.torch_modes import full_precision, widest_float, with_float64

__all__ = [
    "Distance",
    "EuclideanDistance",
    "Mahalanobis",
    "as_distance",
    "cosine",
    "dot",
    "entries_of",
    "euclidean",
    "exact",
    "exact_pairs",
    "form_of",
    "hamming",
    "keeps_finite",
    "negative_cosine",
    "squared_euclidean",
    "takes_floats_only",
]


@runtime_checkable
class Distance(Protocol):
    """What `distance=` takes beside a name: three functions, and whether a loss can train on them.

    A distance of one's own is a class with these four, or a subclass of `Mahalanobis` that overrides some. It
    may have members of `EuclideanDistance` too, which allow faster ways than calling these functions.
    """

    @property
    def differentiable(self) -> bool:
        """False where the gradient is 0 everywhere."""
        ...

    def prepare(self, embeddings: Shaped[Tensor, "n d"], /) -> Float[Tensor, "n k"]:
        """The features that `tile` and `paired` compare, with the graph of `embeddings`."""
        ...

    def tile(self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], /) -> Float[Tensor, "a r"]:
        """D(x_i, y_j) for every row i and column j; its gradient is finite everywhere."""
        ...

    def paired(self, x: Float[Tensor, "t k"], y: Float[Tensor, "t k"], /) -> Float[Tensor, " t"]:
        """D(x_i, y_i) for every i; its gradient is finite everywhere."""
        ...


@runtime_checkable
class EuclideanDistance(Distance, Protocol):
    """A `Distance` that says what it is made of, which allows faster ways than calling `tile` for all pairs.

    `euclidean`, `squared_euclidean`, `cosine`, `dot` and `Mahalanobis` have the three members. A distance of
    one's own may have any of them. Each is a promise about functions of `Distance`: `form` and `entries`
    about `tile` and `paired`, `floats_only` about `prepare`. A subclass, or an object, that overrides one of
    these functions takes the promise back by that alone, and its own functions are called throughout. Where
    the promise still holds, the subclass states it again: `form = Mahalanobis.form`.

    Example:
        >>> class Squared(Mahalanobis):
        ...     def tile(self, x, y):
        ...         return super().tile(x, y) ** 2
        >>> isinstance(euclidean, EuclideanDistance), isinstance(hamming, EuclideanDistance)
        (True, False)
        >>> form_of(euclidean).root, form_of(Squared(torch.eye(2)))
        (True, None)
    """

    @property
    def form(self) -> EuclideanForm | ProductForm:
        """What `tile` and `paired` are made of; `Mahalanobis.form` is ‖x − y‖ of what `prepare` gives.

        Without it, `tile` itself is what ties and bounds are decided by.
        """
        ...

    @property
    def floats_only(self) -> bool:
        """True where `prepare` takes no whole numbers, so that they are refused by name."""
        ...

    def entries(
        self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"], j: Int[Tensor, " t"], /
    ) -> Float[Tensor, " t"]:
        """`tile(x, y)[i, j]`, for long lists of few rows. Without it, lists are measured by `paired`."""
        ...


# The only functions that ask a distance for more than `Distance` has.


def form_of(distance: Distance) -> EuclideanForm | ProductForm | None:
    """The distance's `form`; None where it has none, or has overridden what the form is about."""
    return promised(distance, "form", "tile", "paired")


def entries_of(distance: Distance) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """The distance's `entries`; None where it has none, or has overridden what they are entries of."""
    return promised(distance, "entries", "tile", "paired")


def takes_floats_only(distance: Distance) -> bool:
    """The distance's `floats_only`; False where it has none, or has overridden `prepare`."""
    return bool(promised(distance, "floats_only", "prepare"))


def keeps_finite(distance: Distance) -> bool:
    """Whether embeddings that `FiniteCheck` accepts give features that it accepts; known of ours alone."""
    return bool(promised(distance, "_keeps_finite", "prepare"))


def _floats(embeddings: Shaped[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The embeddings as they are, in float32 or float64."""
    if not embeddings.is_floating_point():
        raise refusal(
            "distance",
            "embeddings",
            str(embeddings.dtype),
            "floating-point embeddings",
            'convert with .float(), or take distance="hamming" for integer codes',
        )
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _directions(embeddings: Shaped[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows divided by their length; a zero row stays zero and gets no gradient."""
    x = _floats(embeddings).contiguous()  # else equal rows in other layouts would differ in their last bit
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # [n, 1]
    return x / threshold(length, 0, math.inf)  # a length of 0 becomes inf


def _lifted(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
    """Directions with a last coordinate that is 1 for a zero row, so that it is √2 from every other row."""
    return torch.cat([x, ~x.any(-1, keepdim=True)], dim=-1)  # false and true become 0 and 1


def _codes(embeddings: Shaped[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Floats by sign, integers by value: float64 holds each integer up to 2⁵³, float32 up to 2²⁴."""
    if embeddings.is_floating_point():
        return (embeddings > 0).float()
    if embeddings.is_complex():
        raise refusal("distance", "embeddings", str(embeddings.dtype), "floats, or whole numbers")
    codes = embeddings.to(widest_float(embeddings.device))
    digits = 53 if codes.dtype == torch.float64 else 24
    if codes.numel() and not float(codes.abs().amax()) < 2.0**digits:
        shown = f"codes up to {float(codes.abs().amax()):g}"
        expected = "floats, or whole numbers below 2⁵³ in size"
        if digits == 24:
            expected = f"floats, or whole numbers below 2²⁴ in size, since {codes.device} has no float64"
        raise refusal("distance", "embeddings", shown, expected)
    return codes


class _Named:
    """A distance that is its closed form. Two are equal if they are of one class and override the same."""

    name: ClassVar[str]
    form: ClassVar[EuclideanForm | ProductForm]
    differentiable: bool = True
    floats_only: bool = True
    _keeps_finite: bool = True
    prepare = staticmethod(_floats)

    def tile(self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
        return self.form.tile(x, y)

    def paired(self, x: Float[Tensor, "t k"], y: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
        return self.form.paired(x, y)

    def entries(
        self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"], i: Int[Tensor, " t"], j: Int[Tensor, " t"]
    ) -> Float[Tensor, " t"]:
        return self.form.entries(x, y, i, j)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return self.name


class _Euclidean(_Named):
    name = "euclidean"
    form = EuclideanForm(root=True)


class _SquaredEuclidean(_Named):
    name = "squared_euclidean"
    form = EuclideanForm()


class _Cosine(_Named):
    name = "cosine"
    form = EuclideanForm(scale=0.5, space=_lifted)
    prepare = staticmethod(_directions)
    floats_only = _keeps_finite = True  # `prepare` is overridden, so the promises are stated again


class _NegativeCosine(_Named):
    name = "cosine"
    form = ProductForm()
    prepare = staticmethod(_directions)
    floats_only = _keeps_finite = True  # `prepare` is overridden, so the promises are stated again


class _Dot(_Named):
    name = "dot"
    form = ProductForm()


class _Hamming(_Named):
    name = "hamming"
    differentiable = floats_only = False
    prepare = staticmethod(_codes)

    def tile(self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
        return torch.cdist(x, y, p=0.0)

    def paired(self, x: Float[Tensor, "t k"], y: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
        return (x != y).sum(1).to(x.dtype)


euclidean: Distance = _Euclidean()
"""D = ‖x − y‖. The root has no derivative at x = y; the gradient there is 0, its smallest subgradient."""

squared_euclidean: Distance = _SquaredEuclidean()
"""D = ‖x − y‖², the sum of squared differences: exact for whole numbers, where bounds are decided exactly."""

cosine: Distance = _Cosine()
"""D = 1 − s, in [0, 2], of the similarity s = cos(x, y).

Computed as ½‖x/‖x‖ − y/‖y‖‖², which is the same number, but exactly 0 for equal rows, never negative, and
precise for near duplicates.

A zero row has no direction: its similarity to every row is s = 0, and it gets no gradient. Two zero rows are
equal, though, and equal rows are 0 apart: so D is 1 between a zero row and any other, and 0 between two.
"""

negative_cosine: Distance = _NegativeCosine()
"""D = −s, `cosine` less 1, by a matrix product: for heads that do not change where all distances are 1 less.

It is many times faster than differences. It is not exactly −1 for equal rows, since a similarity does without
the digits that a small distance needs. Of zero rows it is 0, to each other too.
"""

dot: Distance = _Dot()
"""D = −x·y: negative for similar rows, and not 0 for equal ones.

It is a matrix product, so its last bit may depend on how tiles are cut.
"""

hamming: Distance = _Hamming()
"""D = the number of differing positions of two codes: integers by value, floats by sign (x > 0).

It has no gradient, so miners and metrics take it and losses refuse it.
"""

_NAMES = {repr(d): d for d in (euclidean, squared_euclidean, cosine, dot, hamming)}


class Mahalanobis(nn.Module):
    """The Euclidean distance after the linear map xᵀL.

    D(x, y) = √((x − y)ᵀ M (x − y)), M = LLᵀ

    M is positive semi-definite whatever L is. A linear layer W after a backbone learns the same M = WWᵀ.

    Args:
        L: [d, k] floats. A `nn.Parameter` is learned with the head that holds the distance; a plain
            tensor is a buffer.

    Raises:
        ValueError: L is not a matrix of floats.

    Example:
        >>> distance = Mahalanobis(torch.diag(torch.tensor([3.0, 4.0])))
        >>> x = distance.prepare(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        >>> distance.tile(x, x)
        tensor([[0., 5.],
                [5., 0.]])

    Reference:
        Weinberger & Saul, "Distance metric learning for large margin nearest neighbor classification",
        JMLR 2009.
    """

    differentiable = True
    floats_only = True
    form = EuclideanForm(root=True)
    entries = form.entries

    def __init__(self, L: Tensor) -> None:
        super().__init__()
        if not isinstance(L, Tensor) or L.ndim != 2 or not L.is_floating_point():
            shown = f"{L.dtype} {tuple(L.shape)}" if isinstance(L, Tensor) else L
            raise refusal("Mahalanobis", "L", shown, "a float tensor [d, k]")
        if isinstance(L, nn.Parameter):
            self.L = L
        else:
            self.register_buffer("L", L)

    def prepare(self, embeddings: Shaped[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """xᵀL for every row x.

        Args:
            embeddings: [n, d] floats.

        Returns:
            Floats [n, k], with the graph of `embeddings` and of `L`.

        Raises:
            ValueError: another number of dimensions or another device than `L` has.
        """
        x = _floats(embeddings)
        if x.shape[1] != self.L.shape[0]:
            raise refusal(
                "Mahalanobis", "L", tuple(self.L.shape), f"one row for each of {x.shape[1]} dimensions"
            )
        if self.L.device != x.device:
            raise refusal("Mahalanobis", "L", str(self.L.device), f"the embeddings' device {x.device}")
        if x.dtype == torch.float64:
            return mapped_rows(x, self.L.double())
        # In float64, so that equal rows of other batches stay equal.
        with full_precision(x.device), full_precision(torch.device("cpu")):
            return with_float64(lambda x, L: x.double() @ L.double(), x, self.L).to(x.dtype)

    def tile(self, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
        """‖x_i − y_j‖ of prepared rows.

        Args:
            x: [a, k], from `prepare`.
            y: [r, k], from `prepare`.

        Returns:
            Floats [a, r].
        """
        return self.form.tile(x, y)

    def paired(self, x: Float[Tensor, "t k"], y: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
        """‖x_i − y_i‖ of prepared rows.

        Args:
            x: [t, k], from `prepare`.
            y: [t, k], from `prepare`.

        Returns:
            Floats [t].
        """
        return self.form.paired(x, y)

    def extra_repr(self) -> str:
        """The shape of L, for `print`."""
        return "×".join(map(str, self.L.shape))


def exact(distance: Distance, x: Float[Tensor, "a k"], y: Float[Tensor, "r k"]) -> Float[Tensor, "a r"]:
    """D(x_i, y_j) by differences: each number depends on its two rows alone, not on the tile around them.

    Ties and bounds are decided by these numbers. They take about ten times as long as `tile`, and have no
    gradient. A distance without a closed form by differences, such as `dot` or one's own, is `tile`.

    Args:
        distance: a `Distance`.
        x: features [a, k].
        y: features [r, k].

    Returns:
        [a, r].

    Example:
        >>> exact(squared_euclidean, torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0], [3.0, 4.0]]))
        tensor([[ 2., 25.]])
    """
    form = form_of(distance)
    return form.exact(x, y) if isinstance(form, EuclideanForm) else distance.tile(x, y)


def exact_pairs(distance: Distance, x: Float[Tensor, "t k"], y: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
    """D(x_i, y_i) by differences: the numbers of `exact`, pair by pair, and `paired` where it is `tile`.

    Args:
        distance: a `Distance`.
        x: features [t, k].
        y: features [t, k].

    Returns:
        [t].

    Example:
        >>> exact_pairs(squared_euclidean, torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([2.])
    """
    form = form_of(distance)
    if isinstance(form, EuclideanForm):
        return form.exact_pairs_in_space(form.space(x), form.space(y))
    return distance.paired(x, y)


def as_distance(caller: str | None, distance: Any, *, gradient: bool = False) -> Distance:
    """The distance that an object or a name stands for.

    Args:
        caller: the class or function that was called, for error messages; None for a `Refusal`.
        distance: `"euclidean"`, `"squared_euclidean"`, `"cosine"`, `"dot"`, `"hamming"`, or a `Distance`.
        gradient: refuse a distance that a loss cannot train on.

    Returns:
        The `Distance`.

    Raises:
        ValueError: an unknown name, an object without the three functions, or one without a gradient.

    Example:
        >>> as_distance("BatchHard", "cosine")
        cosine
    """
    if isinstance(distance, str) or not isinstance(distance, Distance):
        distance = _NAMES[as_choice(caller, "distance", distance, _NAMES)]
    if gradient and not distance.differentiable:
        hint = "train on another one and search with it"
        raise refusal(caller, "distance", distance, "a distance with a gradient", hint)
    return distance
