"""`Remining`: hard triplets that are mined anew while a model trains, in its process or in one beside it."""

from __future__ import annotations

import inspect
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tercet.core.checks import Refusal, as_bool, as_choice, as_float, as_int, as_path, as_seed, border
from tercet.data.catalog.catalog import Catalog
from tercet.data.io.checked_json import checksum_fits, with_checksum
from tercet.offline.embed import embed
from tercet.offline.hard_negatives import mine_hard_triplets
from tercet.offline.remining_folder import RoundFolder
from tercet.offline.remining_loader import started
from tercet.offline.remining_process import (
    await_round,
    from_first_rank,
    is_first_rank,
    load_weights,
    next_to_mine,
    write_weights,
)
from tercet.offline.remining_rounds import Round, RoundMiner, read_round, write_round

__all__ = ["ReminedBatches", "Remining"]

_CALLER = "Remining"
_OURS = {"embedding": ("model", "data", "out", "overwrite"), "mining": ("embeddings", "labels", "seed")}


class Remining:
    """Batches of triplets whose negatives are mined anew every n steps, with the model as it is by then.

    A round embeds the collection with `embed`, mines it with `mine_hard_triplets`, and hands the triplets
    over at a batch border. Round r has the weights of step r · `every`.

        remining = Remining(model, catalog, "rounds", every=500, mining={"negatives": 2, "reserve": 8})

        def loader(triplets):
            sampler = tercet.AnchorSampler(triplets, anchors=32, images=256)
            return DataLoader(tercet.TripletDataset(triplets, augment), batch_sampler=sampler, num_workers=4)

        for images, triplets, labels, rows in remining.batches(loader, steps=10_000):
            loss = head(model(images), labels, triplets)

    With `parts` above 1, a round embeds one part of the images and mines these as anchors, among the newest
    embeddings of all. The other anchors keep their negatives, less those that have become stale by these
    embeddings, which the next of their reserve list replaces: no search, and no image embedded for it. The
    test for that is s · `stale` < s when mined, for scores s above 0.

    Hard and random negatives are mixed by `mining={"uniform": 0.25}`: each negative is with that probability
    drawn from all rows of other classes instead, anew in each round. Those from beyond the rank window never
    count as stale.

    Everything that is drawn is a function of (`seed`, round, row). A run that is resumed from `state_dict`
    and the folder gives the triplets of an undisturbed one, to the bit, if the model's weights are equal to
    the bit. Under torch.distributed the first rank embeds and mines, and the others wait for it.

    Beside training: with `beside`, the loop writes its weights into the folder and goes on at once. Another
    process, on another device or machine, builds the same `Remining` and calls `serve()`: it polls the
    folder, embeds, mines and writes rounds.

    Each round is a line of `drift.jsonl` in the folder, and an item of `drift`: the step of its weights, the
    step from which it was trained on, the share of (anchor, negative) that are new, and of the negatives
    before it the share that had become stale, the mean change of the score since they were mined, how many
    were replaced and how many had no reserve left; and the seconds that it took.

    Args:
        model: a `torch.nn.Module` that gives [b, d] for images [b, c, h, w], or what it is wrapped in for
            DDP. Without `beside`, any callable that `embed` takes.
        data: a `Catalog`; or a `ShardIndex`, with `parts=1`, which `TripletDataset(..., catalog=index)` takes
            too.
        folder: where rounds, embeddings and the drift log are kept; made if it is not there.
        every: n, batches from one round to the next.
        parts: into how many parts the images are divided, of which each round after the first takes one in
            turn. A cycle of so many rounds takes each image once.
        stale: above 1; a negative is stale if its score, times this, is below its score when it was mined.
        keep: of how many rounds embeddings are kept, with `parts` above 1: a state can be resumed as long as
            those of its round are there.
        seed: of everything that is drawn.
        embedding: options of `embed`, such as {"transform": t, "workers": 4}.
        mining: options of `mine_hard_triplets`, such as {"negatives": 2, "reserve": 8, "max_quantile": 0.05}.
        beside: None to embed and mine in this process, while training waits; "wait" to train on round r − 1
            from step r · `every` on, and to wait where it is not there yet, which gives the same triplets on
            every machine; "newest" to take each round up as soon as it is there, and never to wait.
        patience: seconds to wait for the other process: of the loop for a round, of `serve` for weights.
        overwrite: begin anew in a folder with rounds of an earlier run, which are removed.

    Attributes:
        step: how many batches were given.
        drift: the rows of the drift log.
        report: what mining counted in the round that is trained on, as a table; empty before the first.

    Raises:
        ValueError: an argument out of range or of another kind, an unknown option of `embed` or
            `mine_hard_triplets`, or one that is set here.

    Example:
        >>> import pathlib
        >>> from torch.utils.data import DataLoader
        >>> from tercet.data.catalog.scan import scan_folder
        >>> from tercet.data.datasets.triplet_dataset import TripletDataset
        >>> from tercet.data.samplers.by_anchor import AnchorSampler
        >>> for number in range(8):
        ...     file = pathlib.Path("mined", "abcd"[number // 2], f"{number}.pgm")
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = file.write_bytes(b"P5 2 1 255 " + bytes([9 * number, 255 - number]))
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
        >>> remining = Remining(model, scan_folder("mined"), "rounds", every=2, embedding={"transform": None})
        >>> def loader(triplets):
        ...     sampler = AnchorSampler(triplets, anchors=4)
        ...     return DataLoader(TripletDataset(triplets), batch_sampler=sampler)
        >>> [batch.triplets.count for batch in remining.batches(loader, steps=4)]
        [4, 4, 4, 4]
        >>> [(row["round"], row["step"], row["stale"]) for row in remining.drift]
        [(0, 0, None), (1, 2, 0.0)]

    Reference:
        Xiong et al., "Approximate nearest neighbor negative contrastive learning", 2021, for rounds beside
        training; Li et al., "Conan-embedding", 2024, for the test of stale negatives.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        folder: str | Path,
        *,
        every: int,
        parts: int = 1,
        stale: float = 1.15,
        keep: int = 2,
        seed: int = 0,
        embedding: Mapping[str, Any] | None = None,
        mining: Mapping[str, Any] | None = None,
        beside: str | None = None,
        patience: float = 3600.0,
        overwrite: bool = False,
    ) -> None:
        with border(_CALLER):
            catalog = data.catalog if hasattr(data, "tars") and hasattr(data, "read") else data
            if not isinstance(catalog, Catalog) or not len(catalog):
                raise Refusal("data", data, "a Catalog with at least one image, or a ShardIndex")
            inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
            if not callable(inner):
                raise Refusal("model", model, "a torch.nn.Module or another callable")
            if beside is not None:
                beside = as_choice(None, "beside", beside, ("wait", "newest"))
                if not isinstance(inner, nn.Module):
                    raise Refusal("model", model, "a torch.nn.Module, whose weights the loop hands over")
            self.every = as_int(None, "every", every, 1)
            self._parts = as_int(None, "parts", parts, 1, len(catalog))
            if self._parts > 1 and catalog is not data:
                raise Refusal("parts", parts, "1 for a ShardIndex", "or pass a Catalog of image files")
            self._stale = as_float(None, "stale", stale, above=1)
            self._keep = as_int(None, "keep", keep, 1)
            self._seed = as_seed(None, seed)
            self._patience = as_float(None, "patience", patience, 0)
            self._overwrite = as_bool(None, "overwrite", overwrite)
            given = {
                "embedding": _options("embedding", embedding, embed),
                "mining": _options("mining", mining, mine_hard_triplets),
            }
            target = as_path(None, "folder", folder, new=True)
            try:
                target.mkdir(exist_ok=True)
            except OSError as error:
                raise Refusal("folder", str(folder), "a folder, or a new name in one", str(error)) from error
        self._model, self._catalog, self._beside = inner, catalog, beside
        self._folder = RoundFolder(target)
        self._miner = RoundMiner(
            inner, data, catalog, self._folder, self._parts, self._stale, self._seed, **given
        )
        self._settings = {
            "every": self.every,
            "parts": self._parts,
            "stale": self._stale,
            "seed": self._seed,
            "beside": beside or "",
            "catalog": catalog.fingerprint,
            "options": zlib.crc32(json.dumps(given, sort_keys=True, default=_kind).encode()),
        }
        self.step = 0
        self.drift: list[dict[str, Any]] = []
        self._epoch, self._in_epoch = 0, 0  # passes over lists that have begun before, batches of this one
        self._asked = -1  # the last round that was due: in this process, or whose weights were written
        self._round: Round | None = None

    def batches(self, loader: Callable[[Any], Any], steps: int | None = None) -> ReminedBatches:
        """What to iterate over, once an epoch: batches up to the next step that is a multiple of `steps`.

        A round that is due is mined, or taken up, before the batch is drawn. Each list of triplets gets a
        loader of its own, so what workers have read ahead of the old one is left. If a list ends before the
        next round, it begins again, in another order and with other augmentations.

        Args:
            loader: a function that gives a DataLoader for a `Manifest` of triplets, with a sampler of this
                library, which can start at any step; called once a round.
            steps: batches of an epoch; by default `every`.

        Returns:
            An iterable of what the loader gives, `steps` long. Lightning takes it as a loader, and keeps its
            state in checkpoints.

        Raises:
            ValueError: `loader` is not callable, or `steps` below 1; while iterating, rounds of an earlier
                run in the folder, options that leave no triplet, or a loader of another kind.
            TimeoutError: while iterating, no round of the process beside within `patience` seconds.
        """
        with border("Remining.batches"):
            if not callable(loader):
                raise Refusal("loader", loader, "a function of triplets that gives a DataLoader")
            return ReminedBatches(
                self, loader, self.every if steps is None else as_int(None, "steps", steps, 1)
            )

    def _iterate(self, loader: Callable[[Any], Any], steps: int) -> Iterator[Any]:
        end = (self.step // steps + 1) * steps
        built: Any = None
        running: Any = None
        while self.step < end:
            with border("Remining.batches"):
                if self._is_round_due():
                    built = running = None  # its workers end before images are embedded
                    self._take_up()
                if built is None:
                    assert self._round is not None  # the first batch is due a round
                    built = loader(self._round.manifest(self._catalog))
                if running is None:
                    running = started(built, self._epoch, self._in_epoch, self._seed)
            try:
                batch = next(running)
            except StopIteration:
                if not self._in_epoch:
                    expected = "a loader that gives at least one batch"
                    raise Refusal("loader", built, expected).named("Remining.batches") from None
                self._epoch, self._in_epoch, running = self._epoch + 1, 0, None
                continue
            self.step += 1
            self._in_epoch += 1
            yield batch

    def _is_round_due(self) -> bool:
        due = self.step // self.every
        return self._round is None or due > self._asked or self._is_newer_there()

    def _is_newer_there(self) -> bool:
        """Whether the process beside has mined a further round, as the first rank sees it."""
        if self._beside != "newest" or self._round is None or self._round.number == self._asked:
            return False
        newer = range(self._asked, self._round.number, -1)
        return from_first_rank(lambda: any(self._folder.file(one, "round").exists() for one in newer))

    def _take_up(self) -> None:
        """Mine what is due, or ask for it, and go on with the newest round that may be trained on."""
        due = self.step // self.every
        number = from_first_rank(lambda: self._provided(due))
        self._asked = due
        if self._round is not None and number == self._round.number:
            return
        if self._round is not None:
            self._epoch, self._in_epoch = self._epoch + 1, 0
        self._round = read_round(self._folder.file(number, "round"))
        self.drift.append({**self._round.facts["drift"], "from_step": self.step})
        if is_first_rank():
            self._folder.write_rows(self.drift)
            self._folder.remove(0, number + 1, "weights")

    def _provided(self, due: int) -> int:
        """On the first rank: provide a round to train on from here, and give its number."""
        if self._round is None and self._asked < 0:
            self._begin()
        if self._beside is None:
            self._mine(due, self._round)
            return due
        if due > self._asked:
            write_weights(self._folder, due, self._model)
        if self._beside == "newest" and self._round is not None:
            return max(self._folder.numbers("round"))
        wanted = max(0, due - 1)
        await_round(self._folder, wanted, self._patience)
        return wanted

    def _begin(self) -> None:
        """Refuse, or remove, the rounds of an earlier run."""
        if (there := self._folder.numbers("round")) and not self._overwrite:
            hint = "load the state of that run, pass overwrite=True, or take another folder"
            shown = f"{self._folder.path} holds {len(there)} rounds"
            raise Refusal("folder", shown, "a folder without rounds", hint).named(_CALLER)
        self._folder.remove(0)

    def _mine(self, number: int, before: Round | None) -> None:
        """Make a round with the weights of the moment and write it."""
        with border(_CALLER):
            found = self._miner.mine(number, number * self.every, before)
            write_round(self._folder, found, self._catalog)
            if self._parts > 1:
                rounds = [one for one in self._folder.numbers("table") if one <= number]
                self._folder.remove(0, rounds[-self._keep :][0], "table")

    def serve(self, steps: int | None = None) -> None:
        """Embed and mine what a training process beside this one asks for.

        The model's weights are replaced by those of the folder. Of weights that wait, `beside="wait"` takes
        each in turn, and "newest" the newest. A thread beside training would not do: transforms draw from
        the global generators, seeded for each image.

        Args:
            steps: return once the rounds are there that a loop of so many batches waits for; None to go on
                until it is interrupted.

        Raises:
            ValueError: `beside` is None, `steps` below 1, weights of another model, or options that do not
                fit.
            TimeoutError: no weights within `patience` seconds.
        """
        with border("Remining.serve"):
            if self._beside is None:
                raise Refusal("beside", None, '"wait" or "newest", here and in the training process')
            last = None if steps is None else max(0, (as_int(None, "steps", steps, 1) - 1) // self.every - 1)
            given = self._beside == "newest", last, self._patience
            while (found := next_to_mine(self._folder, *given)) is not None:
                number, before = found
                load_weights(self._folder, number, self._model)
                self._mine(number, read_round(self._folder.file(before, "round")) if before >= 0 else None)

    def state_dict(self) -> dict[str, Any]:
        """Where the loop stands: a few numbers and strings, and a checksum of the triplets in use.

        Returns:
            A dict that `json` and `torch.save` can write. The folder belongs to it.
        """
        state: dict[str, Any] = {
            "step": self.step,
            "epoch": self._epoch,
            "in_epoch": self._in_epoch,
            "asked": self._asked,
            "round": -1 if self._round is None else self._round.number,
            "triplets": 0 if self._round is None else self._round.checksum,
            "settings": dict(self._settings),
        }
        return with_checksum(state)

    def load_state_dict(self, state: Any) -> None:
        """Go on where a state was saved. Later rounds in the folder are removed: they are mined again.

        Args:
            state: from `state_dict`.

        Raises:
            ValueError: not a state, one of other settings, one that was changed, or a folder that lacks the
                round of the state or has another one of its number.
        """
        with border("Remining.load_state_dict", "state"):
            is_state = isinstance(state, dict) and state.keys() == self.state_dict().keys()
            if not is_state or not isinstance(state["settings"], dict) or not checksum_fits(state):
                raise Refusal(None, type(state).__name__, "what state_dict() gave, unchanged")
            for name, here in self._settings.items():
                if (saved := state["settings"].get(name)) != here:
                    raise Refusal(f"state[{name!r}]", saved, f"{here!r}, as this Remining has")
            number, found = state["round"], None
            if number >= 0:
                found = read_round(self._folder.file(number, "round"))
                if found.checksum != state["triplets"]:
                    place = str(self._folder.file(number, "round"))
                    raise Refusal("folder", place, "the triplets of the state", "it is of another run")
        self.step, self._epoch, self._in_epoch = state["step"], state["epoch"], state["in_epoch"]
        self._asked, self._round = state["asked"], found
        self.drift = [row for row in self._folder.rows() if row["round"] <= number]
        if is_first_rank():
            self._folder.remove(state["asked"] + 1)
            self._folder.write_rows(self.drift)

    @property
    def report(self) -> str:
        """What mining counted in the round that is trained on, as a table; empty before the first."""
        return "" if self._round is None else self._round.facts["report"]

    def callback(self) -> Any:
        """A Lightning callback that logs each round's drift, for `Trainer(callbacks=[...])`.

        The trainer takes the batches as its loader, `trainer.fit(module, remining.batches(loader))`: so every
        n steps are mined, and Lightning's checkpoints hold the state.

        Returns:
            A `lightning.pytorch.Callback`.

        Raises:
            ImportError: lightning is not installed.
        """
        from tercet.offline.remining_lightning import drift_callback

        return drift_callback(self)


class ReminedBatches:
    """Batches of an epoch of re-mined triplets; `Remining.batches` creates it.

    Args:
        remining: where the triplets come from.
        loader: a function of triplets that gives a DataLoader.
        steps: batches of an epoch.
    """

    def __init__(self, remining: Remining, loader: Callable[[Any], Any], steps: int) -> None:
        self.remining = remining
        self._loader, self._steps = loader, steps

    def __iter__(self) -> Iterator[Any]:
        return self.remining._iterate(self._loader, self._steps)

    def __len__(self) -> int:
        return self._steps

    def state_dict(self) -> dict[str, Any]:
        """The state of the `Remining`: by this name Lightning asks its loaders."""
        return self.remining.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was saved."""
        self.remining.load_state_dict(state)


def _options(argument: str, given: Any, function: Callable[..., Any]) -> dict[str, Any]:
    """Options of a function, refused where it has none of that name, or where they are set here."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise Refusal(argument, given, f"a dict of options of {function.__name__}")
    known = [name for name in inspect.signature(function).parameters if name not in _OURS[argument]]
    for name in given:
        as_choice(None, argument, name, known)
    return dict(given)


def _kind(value: Any) -> str:
    """What stands for an option that JSON does not know, when two runs are compared."""
    return type(value).__name__
