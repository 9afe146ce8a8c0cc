import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.core.indices import References
from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin
from tercet.miners.hard import BatchHard
from tercet.pairwise.relations import CrossGroup, Graded, SharedLabel
from tercet.training.distributed import gather
from tercet.training.memory import CrossBatchMemory
from tests.helpers import points, unchecked
from tests.oracles import triplets as reference


def counted(first, n, d=2):
    """Rows first, first + 1, …, each with its number as embedding, label and id."""
    number = torch.arange(first, first + n)
    return number[:, None].repeat(1, d).float(), number, number


def filled(size=5, *batches, ids=False):
    memory, first = CrossBatchMemory(size, 2), 0
    for n in batches:
        x, labels, rows = counted(first, n)
        memory.update(x, labels, rows if ids else None)
        first += n
    return memory


def check_holds(memory, numbers, ids):
    """Exactly these rows of `counted`, in this order."""
    columns = memory.columns()
    assert isinstance(columns, References)
    assert columns.embeddings[:, 0].tolist() == columns.labels.tolist() == numbers
    assert columns.embeddings.shape == (len(numbers), 2)
    assert len(memory) == len(numbers)
    assert (None if columns.ids is None else columns.ids.tolist()) == (numbers if ids and numbers else None)


def saved_and_loaded(memory):
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    other = CrossBatchMemory(memory.size, memory.dim)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@given(
    size=st.integers(1, 7),
    batches=st.lists(st.integers(0, 17), max_size=6),
    ids=st.booleans(),
    saved=st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
def test_it_holds_the_last_rows_oldest_first_and_saved_and_resumed_forgets_nothing(size, batches, ids, saved):
    memory, written = CrossBatchMemory(size, 2), []
    for step, n in enumerate(batches):
        if step == saved:
            memory = saved_and_loaded(memory)
        x, labels, rows = counted(len(written), n)
        memory.update(x, labels, rows if ids else None)
        written += rows.tolist()
        check_holds(memory, written[-size:], ids)


def test_the_check_of_what_it_holds_can_fail():
    for numbers, ids in (([2, 3, 4, 5], False), ([2, 3, 4, 5, 7], False), ([3, 2, 4, 5, 6], False)):
        with pytest.raises(AssertionError):
            check_holds(filled(5, 4, 3), numbers, ids)
    with pytest.raises(AssertionError):
        check_holds(filled(5, 4, 3), [2, 3, 4, 5, 6], True)
    check_holds(filled(5, 4, 3), [2, 3, 4, 5, 6], False)


def test_its_position_is_in_the_state():
    assert set(CrossBatchMemory(4, 2).state_dict()) == {"embeddings", "labels", "ids", "written"}
    memory = filled(5, 4, 3)
    loaded = saved_and_loaded(memory)
    for each in (memory, loaded, copy.deepcopy(memory)):
        each.update(*counted(7, 1)[:2])
        check_holds(each, [3, 4, 5, 6, 7], False)


def test_a_batch_above_its_size_leaves_the_last_rows():
    check_holds(filled(5, 13), [8, 9, 10, 11, 12], False)
    check_holds(filled(5, 3, 13, ids=True), [11, 12, 13, 14, 15], True)
    check_holds(filled(5, 5), [0, 1, 2, 3, 4], False)


def test_reset_forgets_all_and_whether_there_were_ids():
    memory = filled(5, 4, 3, ids=True)
    memory.reset()
    check_holds(memory, [], False)
    memory.update(*counted(0, 2)[:2])
    check_holds(memory, [0, 1], False)


def test_what_it_holds_has_no_graph_and_gives_no_gradient():
    x = points(4, 3).requires_grad_()
    memory = CrossBatchMemory(6, 3)
    memory.update(x * 2, torch.arange(4) % 2)
    columns = memory.columns()
    assert not columns.embeddings.requires_grad
    loss = TripletMargin(10.0)(points(4, 3, seed=1).requires_grad_(), torch.arange(4) % 2, ref=columns)
    loss.backward()
    assert x.grad is None


@pytest.mark.parametrize("head", [TripletMargin(10.0), TripletMargin(10.0, reduction="none")])
def test_an_update_before_backward_changes_neither_loss_nor_gradient(head):
    grads = []
    for early in (False, True):
        memory = filled(6, 6)
        x, labels = (points(4, 2, seed=1) + 3).requires_grad_(), torch.arange(4)
        columns = memory.columns()
        mined = BatchHard()(x, labels, ref=columns)
        loss = head(x, labels, mined, ref=columns).sum()
        if early:
            memory.update(x, labels)
        loss.backward()
        grads.append(x.grad)
    assert grads[0].abs().sum() > 0
    assert torch.equal(*grads)


@pytest.mark.parametrize("size", [1, 4, 30])
def test_references_of_another_size_than_the_batch_give_the_loss_of_the_loop(size):
    memory = CrossBatchMemory(size, 3)
    memory.update(points(20, 3, seed=1), torch.arange(20) % 4)
    x, labels, columns = points(7, 3), torch.arange(7) % 3, memory.columns()
    d = reference.distances("euclidean", x, columns.embeddings)
    positive, negative = reference.relation(labels, columns.labels)
    triplets = reference.all_triplets(positive, negative)
    loss = TripletMargin(0.5, reduction="sum")(x, labels, ref=columns)
    expected = reference.reduced(reference.triplet_losses(d, triplets, margin=0.5), "sum")
    assert math.isclose(loss.item(), expected, rel_tol=1e-5, abs_tol=1e-6)
    mined = set(map(tuple, torch.stack(BatchHard()(x, labels, ref=columns)).T.tolist()))
    assert mined == reference.batch_hard(d, positive, negative)


def test_an_image_that_was_seen_before_does_not_meet_itself():
    images, labels, ids = points(8, 3), torch.arange(8) % 2, torch.arange(8) + 100
    memory = CrossBatchMemory(8, 3)
    memory.update(images, labels, ids)
    rows = torch.tensor([3, 0, 6, 1])
    columns = memory.columns()
    mined = BatchHard()(images[rows], labels[rows], ids=ids[rows], ref=columns)
    d = reference.distances("euclidean", images[rows], images)
    sides = reference.relation(labels[rows], labels, ids[rows], ids)
    assert set(map(tuple, torch.stack(mined).T.tolist())) == reference.batch_hard(d, *sides)
    assert (ids[rows][mined.anchor] != columns.ids[mined.positive]).all()


@pytest.mark.parametrize("with_ids", [False, True])
def test_batch_and_memory_as_columns_are_one_collection_without_self_pairs(with_ids):
    memory = CrossBatchMemory(6, 3, dtype=torch.float64)
    collection, every = points(18, 3, dtype=torch.float64), torch.arange(18) % 3
    catalog = torch.arange(18) % 11  # images come again: 0 to 6 are 11 to 17
    for first in (0, 5):
        rows = slice(first, first + 5)
        memory.update(collection[rows], every[rows], catalog[rows] if with_ids else None)
    x, labels = collection[10:16].clone().requires_grad_(), every[10:16]
    ids, batch = gather(x, labels, catalog[10:16] if with_ids else None)
    columns = memory.columns(batch)
    held = [*range(10, 16), *range(4, 10)]
    assert torch.equal(columns.embeddings, collection[held])
    assert columns.labels.tolist() == every[held].tolist()
    # Without ids a row is itself alone; with them it is each column of its image.
    told = catalog if with_ids else torch.arange(18)
    d = reference.distances("euclidean", x, collection[held])
    positive, negative = reference.relation(labels, every[held], told[10:16], told[held])
    for head, losses in (
        (Contrastive(2.0), reference.contrastive_losses(d, sorted(positive), sorted(negative), margin=2.0)),
        (
            TripletMargin(),
            reference.triplet_losses(d, reference.all_triplets(positive, negative)),
        ),
    ):
        loss = head(x, labels, ids=ids, ref=columns)
        assert math.isclose(loss.item(), reference.reduced(losses, "mean_active"), rel_tol=1e-9)
    mined = BatchHard()(x, labels, ids=ids, ref=columns)
    expected = reference.batch_hard(d, positive, negative)
    assert set(map(tuple, torch.stack(mined).T.tolist())) == expected
    memory.update(*batch)
    assert memory.columns().labels.tolist() == every[10:16].tolist()
    assert (memory.columns().ids is not None) == with_ids


def test_the_gradient_flows_to_the_batch_s_columns():
    memory = CrossBatchMemory(4, 3, dtype=torch.float64)
    memory.update(points(4, 3, seed=1), torch.arange(4) % 2)
    labels = torch.arange(5) % 2

    def loss(x):
        ids, batch = gather(x, labels)
        return Contrastive(2.0)(x, labels, ids=ids, ref=memory.columns(batch))

    assert torch.autograd.gradcheck(loss, points(5, 3, dtype=torch.float64).requires_grad_())


def test_ties_go_to_the_batch_and_then_to_the_oldest():
    memory = CrossBatchMemory(4, 2)
    for _ in range(3):  # the ring is full and begins in the middle
        memory.update(torch.zeros(2, 2), torch.tensor([0, 1]))
    x, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    mined = BatchHard()(x, labels, ref=memory.columns())
    assert torch.stack(mined).T.tolist() == [[0, 0, 1], [1, 1, 0]]
    ids, batch = gather(x, labels)
    mined = BatchHard()(x, labels, ids=ids, ref=memory.columns(batch))
    assert torch.stack(mined).T.tolist() == [[0, 2, 1], [1, 3, 0]]


def test_an_empty_memory_gives_nothing_to_mine_and_an_empty_batch_changes_nothing():
    memory, x = CrossBatchMemory(4, 3), points(4, 3).requires_grad_()
    labels, columns = torch.arange(4) % 2, memory.columns()
    mined = BatchHard()(x, labels, ref=columns)
    assert mined.count == 0
    loss = TripletMargin()(x, labels, mined, ref=columns)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros(4, 3))
    ids, batch = gather(x, labels)
    assert memory.columns(batch).embeddings.shape == (4, 3)
    memory.update(x[:0], labels[:0])
    memory.update(x[:0], labels[:0], ids[:0])
    assert len(memory) == 0
    memory = filled(5, 3, ids=True)
    memory.update(*counted(3, 0)[:2])
    check_holds(memory, [0, 1, 2], True)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_labels_of_every_whole_kind_and_above_2_to_the_24(kind):
    memory = CrossBatchMemory(4, 2)
    memory.update(torch.zeros(2, 2), torch.tensor([0, 1]).to(kind), torch.tensor([2**24 + 1, 2**62 + 1]))
    memory.update(torch.zeros(2, 2), torch.tensor([2**24 + 1, 2**53 + 1]), torch.tensor([5, 6]))
    assert memory.columns().labels.tolist() == [0, 1, 2**24 + 1, 2**53 + 1]
    assert memory.columns().ids.tolist() == [2**24 + 1, 2**62 + 1, 5, 6]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_precision_is_a_choice_and_moves_with_to(dtype):
    x = points(3, 2, dtype=torch.float64)
    memory = CrossBatchMemory(4, 2, dtype=dtype)
    memory.update(x, torch.arange(3))
    assert torch.equal(memory.columns().embeddings, x.to(dtype))
    _, batch = gather(x, torch.arange(3))
    assert memory.columns(batch).embeddings.dtype == torch.float64
    half = torch.nn.ModuleDict({"memory": memory}).to(torch.float16)["memory"]
    assert half.columns().embeddings.dtype == torch.float16
    assert half.columns().labels.dtype == half.columns(batch).ids.dtype == torch.int64
    assert memory.to("meta").embeddings.device.type == "meta"


def test_ids_that_hold_for_one_step_are_not_kept():
    memory = CrossBatchMemory(6, 2)
    x, labels, _ = counted(0, 3)
    ids, batch = gather(x, labels)
    assert (ids < 0).all()
    memory.update(*batch)
    check_holds(memory, [0, 1, 2], False)
    _, batch = gather(x, labels)
    again = memory.columns(batch).ids
    assert not (again[:3, None] == again[None, 3:]).any()


def test_ids_always_or_never():
    x, labels, ids = counted(0, 3)
    _, unknown = gather(x, labels)
    known = References(x, labels, ids)
    with_ids, without = filled(5, 2, ids=True), filled(5, 2)
    text = r"\(ids='none, or below 0'\): expected ids of 0 or more, as all that it holds came with; give"
    for call in (lambda: with_ids.update(x, labels), lambda: with_ids.update(*unknown)):
        with pytest.raises(ValueError, match=r"^CrossBatchMemory.update" + text):
            call()
    text = (
        r"ids='of 0 or more'\): expected ids none, or below 0, as all .*; give ids always or never, or reset"
    )
    with pytest.raises(ValueError, match=r"^CrossBatchMemory.update\(" + text):
        without.update(x, labels, ids)
    with pytest.raises(ValueError, match=r"^CrossBatchMemory.columns\(batch." + text):
        without.columns(known)
    with pytest.raises(ValueError, match=r"^CrossBatchMemory.columns\(batch.ids='none, or below 0'"):
        with_ids.columns(unknown)
    with pytest.raises(ValueError, match=r"columns\(batch.ids=None\): expected ids, so that no row .*gather"):
        without.columns(References(x, labels))
    with pytest.raises(ValueError, match=r"update\(ids=\[0, -1, 2\]\): expected all of 0 or more, or all b"):
        CrossBatchMemory(4, 2).update(x, labels, torch.tensor([0, -1, 2]))
    check_holds(with_ids, [0, 1], True)
    check_holds(without, [0, 1], False)


def test_nan_or_infinite_embeddings_are_a_clear_error_and_change_nothing():
    for bad, dtype in ((math.nan, "float32"), (math.inf, "float32"), (1e6, "float16")):
        memory = CrossBatchMemory(5, 2, dtype=getattr(torch, dtype))
        memory.update(*counted(0, 2))
        x, labels, ids = counted(2, 3)
        x[1, 1] = bad
        text = rf"update\(embeddings='1 of 3 rows, the first is row 1'\): expected finite .* torch.{dtype}"
        with pytest.raises(ValueError, match=text):
            memory.update(x, labels, ids)
        check_holds(memory, [0, 1], True)


@pytest.mark.parametrize("relation", [CrossGroup(), SharedLabel(), Graded(0.9, 0.1, "depth")], ids=repr)
def test_relations_of_several_labels_a_row_take_it_as_columns(relation):
    x, labels = points(24, 4), torch.randint(0, 2, (24, 2), generator=torch.Generator().manual_seed(0))
    memory = CrossBatchMemory(16, 4, label_columns=2)
    memory.update(x[:12], labels[:12])
    memory.update(x[12:20], labels[12:20])
    columns = memory.columns()
    assert torch.equal(columns.labels, labels[4:20])
    mined = BatchHard(relation=relation)(x[20:], labels[20:], ref=columns)
    expected = BatchHard(relation=relation)(x[20:], labels[20:], ref=References(x[4:20], labels[4:20], None))
    assert mined.count
    assert all(torch.equal(u, v) for u, v in zip(mined, expected, strict=True))
    again = CrossBatchMemory(16, 4, label_columns=2)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.columns().labels, columns.labels)


def test_labels_of_another_width_than_the_memory_s_are_refused():
    text = r"update\(labels='shape \(3, 2\)'\): expected shape \[n\]; name the labels of a row in CrossBatchM"
    with pytest.raises(ValueError, match=text):
        CrossBatchMemory(5, 2).update(points(3, 2), torch.zeros(3, 2).long())
    with pytest.raises(ValueError, match=r"update\(labels='shape \(3,\)'\): expected shape \[n, 2\]"):
        CrossBatchMemory(5, 2, label_columns=2).update(points(3, 2), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"CrossBatchMemory\(label_columns=0\): expected a whole number"):
        CrossBatchMemory(5, 2, label_columns=0)


def test_what_does_not_fit_is_refused():
    memory, labels = CrossBatchMemory(5, 2), torch.arange(3)
    text = r"update\(embeddings='torch.float32 of shape \(3, 4\)'\): expected floats of shape \[n, 2\]"
    with pytest.raises(ValueError, match=text):
        memory.update(points(3, 4), labels)
    with pytest.raises(ValueError, match=r"columns\(batch.embeddings='torch.float32 of shape \(3, 4\)'\)"):
        memory.columns(References(points(3, 4), labels, labels))
    with unchecked(), pytest.raises(ValueError, match=r"embeddings='torch.int64 of shape \(3, 2\)'"):
        memory.update(points(3, 2).long(), labels)
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"update\(labels='shape \(3,\)'\): expected shape \(2"),
    ):
        memory.update(points(2, 2), labels)
    with pytest.raises(ValueError, match=r"update\(labels='torch.float32'\): expected a tensor of whole nu"):
        memory.update(points(3, 2), labels.float())
    with pytest.raises(ValueError, match=r"\(embeddings='meta'\): expected the memory's device cpu; move it"):
        memory.update(points(3, 2).to("meta"), labels)
    with pytest.raises(ValueError, match=r"CrossBatchMemory\(size=0\): expected a whole number of at leas"):
        CrossBatchMemory(0, 2)
    with pytest.raises(ValueError, match=r"CrossBatchMemory\(dim=0\): expected a whole number of at leas"):
        CrossBatchMemory(2, 0)
    with pytest.raises(ValueError, match=r"CrossBatchMemory\(dtype=torch.int64\): expected a floating-point"):
        CrossBatchMemory(2, 2, dtype=torch.int64)
    check_holds(memory, [], False)


def test_what_is_filled_shows_when_printed():
    assert repr(filled(5, 3)) == "CrossBatchMemory(size=5, dim=2, filled=3)"


def test_a_memory_knows_what_others_wrote_into_its_buffers():
    memory, other = CrossBatchMemory(4, 2), CrossBatchMemory(4, 2)
    x, labels = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    memory.update(x, labels, torch.tensor([5, 6, 7]))
    other.update(x[:1], labels[:1])
    assert (len(memory), len(other)) == (3, 1)
    other.load_state_dict(memory.state_dict())
    assert len(other) == 3
    assert other.columns().ids.tolist() == [5, 6, 7]
    with pytest.raises(ValueError, match="expected ids of 0 or more, as all that it holds came with"):
        other.update(x, labels)
    twin = copy.deepcopy(other)
    twin.reset()
    assert (len(twin), len(other)) == (0, 3)
    twin.update(x, labels)
    assert twin.columns().ids is None
    assert len(twin.double()) == 3
