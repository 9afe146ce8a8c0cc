import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.core.checks import promised
from tercet.core.indices import References
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard
from tercet.pairwise.distances import euclidean
from tercet.pairwise.pair_relations import Ignore, PairFunction, PairTable
from tercet.pairwise.relations import CrossGroup, Graded, Relation, SameLabel, SharedLabel, as_relation
from tercet.pairwise.tiles import Pairwise
from tests.helpers import jaccard, unchecked


def depth(a, b):
    level = 0
    while level < len(a) and a[level] == b[level]:
        level += 1
    return level / len(a)


# One row a relation: what it says of two rows of labels, (positive, negative).
RELATIONS = {
    "same": (SameLabel(), lambda a, b: (a == b, a != b)),
    "shared": (SharedLabel(), lambda a, b: (jaccard(a, b) > 0, jaccard(a, b) == 0)),
    "cross group": (CrossGroup(), lambda a, b: (a[0] == b[0] and a[1] != b[1], a[0] != b[0])),
    "overlap": (Graded(0.5, 0.2), lambda a, b: (jaccard(a, b) >= 0.5, jaccard(a, b) <= 0.2)),
    "depth": (Graded(1.0, 0.0, "depth"), lambda a, b: (depth(a, b) == 1, depth(a, b) == 0)),
    "a function": (
        Graded(0.9, 0.4, lambda a, b: 1 - (a[:, None] - b).abs().sum(2) / 10),
        lambda a, b: (
            10 - abs(a[0] - b[0]) - abs(a[1] - b[1]) >= 9,
            10 - abs(a[0] - b[0]) - abs(a[1] - b[1]) <= 4,
        ),
    ),
}
TABLE = torch.rand(3, 3, generator=torch.Generator().manual_seed(5))
RELATIONS |= {
    "ignored negatives": (Ignore("same"), lambda a, b: (a[0] == b[0], a[0] != b[0] and a[1] != b[1])),
    "two data sets": (Ignore("other"), lambda a, b: (a[0] == b[0], a[0] != b[0] and a[1] == b[1])),
    "ignored positives": (
        Ignore(positives="same"),
        lambda a, b: (a[0] == b[0] and a[1] != b[1], a[0] != b[0]),
    ),
    "ignored of both": (
        Ignore("same", "other", CrossGroup()),
        lambda a, b: (a[0] == b[0] and a[1] != b[1] and a[2] == b[2], a[0] != b[0] and a[2] != b[2]),
    ),
    "ignored of tags": (
        Ignore("same", relation=SharedLabel()),
        lambda a, b: (jaccard(a[:2], b[:2]) > 0, jaccard(a[:2], b[:2]) == 0 and a[2] != b[2]),
    ),
    "a table": (PairTable(TABLE > 0.6), lambda a, b: (bool(TABLE[a, b] > 0.6), bool(TABLE[a, b] <= 0.6))),
    "two tables": (
        PairTable(TABLE > 0.6, TABLE < 0.3),
        lambda a, b: (bool(TABLE[a, b] > 0.6), bool(TABLE[a, b] < 0.3)),
    ),
    "a function of pairs": (
        PairFunction(lambda a, b: (a[:, None, 0] < b[:, 0], a[:, None, 0] > b[:, 0])),
        lambda a, b: (a[0] < b[0], a[0] > b[0]),
    ),
}
every_relation = pytest.mark.parametrize("name", RELATIONS)


def labels_for(name, n, seed=0):
    wide = 3 if name in ("ignored of both", "ignored of tags") else 2
    labels = torch.randint(0, 3, (n, wide), generator=torch.Generator().manual_seed(seed))
    if name in ("shared", "overlap", "ignored of tags"):
        labels = labels.clamp(max=1)  # one column a label
    return labels[:, 0] if name in ("same", "a table", "two tables") else labels


@pytest.mark.parametrize("name", RELATIONS)
@given(n=st.integers(0, 9), r=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_relation_equals_the_loop_and_no_column_is_both(name, n, r, seed):
    relation, says = RELATIONS[name]
    rows, columns = labels_for(name, n, seed), labels_for(name, r, seed + 1)
    rows = relation.check("test", "labels", rows, n, "cpu")
    columns = relation.check("test", "labels", columns, r, "cpu")
    positive, negative = relation.sides(rows, columns)
    expected = [
        says(a, b) for a in labels_for(name, n, seed).tolist() for b in labels_for(name, r, seed + 1).tolist()
    ]
    assert list(zip(positive.flatten().tolist(), negative.flatten().tolist(), strict=True)) == expected
    assert not (positive & negative).any()


@every_relation
def test_rows_of_another_key_are_negatives(name):
    relation, _ = RELATIONS[name]
    labels = relation.check("test", "labels", labels_for(name, 30), 30, "cpu")
    key = relation.key(labels)
    if key is not None:
        _, negative = relation.sides(labels, labels)
        assert negative[key[:, None] != key[None, :]].all()


@every_relation
def test_miners_take_a_relation_with_ids_and_references(name):
    relation, says = RELATIONS[name]
    x, labels = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), labels_for(name, 20)
    ids = torch.arange(20) // 2
    ref = References(x[5:] + 0.5, labels[5:], ids[5:])
    rows, columns = labels.tolist(), ref.labels.tolist()
    expected = {
        (a, p, n)
        for a in range(20)
        for p in range(15)
        for n in range(15)
        if says(rows[a], columns[p])[0]
        and says(rows[a], columns[n])[1]
        and ids[a] != ids[5 + p]
        and ids[a] != ids[5 + n]
    }
    mined = BatchAll(relation=relation)(x, labels, ids=ids, ref=ref)
    assert set(map(tuple, torch.stack(mined).T.tolist())) == expected
    hard = BatchHard(relation=relation)(x, labels, ids=ids, ref=ref)
    assert set(map(tuple, torch.stack(hard).T.tolist())) <= expected
    assert set(hard.anchor.tolist()) == {a for a, _, _ in expected}


def test_bool_labels_and_large_identities():
    tags = torch.tensor([[True, False], [True, True], [False, False]])
    (tile,) = Pairwise("test", torch.eye(3), tags, distance=euclidean, relation=SharedLabel()).tiles()
    assert tile.positive.nonzero().tolist() == [[0, 1], [1, 0]]
    assert tile.negative.nonzero().tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]
    large = torch.tensor([[2**62, 0], [2**62 + 1, 1]])
    assert not CrossGroup().sides(large, large)[0].any()


def check_refused(text, relation, labels):
    with unchecked(), pytest.raises(ValueError, match=text):
        Pairwise("Miner", torch.eye(3), labels, distance=euclidean, relation=relation)


def test_labels_of_another_shape_are_refused_with_a_sentence():
    flat, wide = torch.arange(3), torch.zeros(3, 4).long()
    check_refused(
        r"labels='shape \(3, 4\)'\): expected shape \(3,\), one for each embedding; pass a relation",
        SameLabel(),
        wide,
    )
    check_refused(
        r"labels='shape \(3,\)'\): expected shape \(3, c\), one column a label", SharedLabel(), flat
    )
    check_refused(r"labels='shape \(3,\)'\): expected shape \(3, c\), identity and group", CrossGroup(), flat)
    check_refused(
        r"labels='shape \(3, 4\)'\): expected shape \(3, 2\), identity and group", CrossGroup(), wide
    )
    check_refused(
        r"labels='shape \(2, 4\)'\): expected shape \(3, c\), several labels a row", Graded(1, 0), wide[:2]
    )
    check_refused(
        r"labels='torch.float32'\): expected a tensor of whole numbers", SharedLabel(), wide.float()
    )


@pytest.mark.parametrize("relation", [SharedLabel(), Graded(0.5, 0.2)], ids=repr)
def test_numbers_of_labels_are_no_columns_of_0_and_1(relation):
    hint = (
        r"\): expected 0 or 1 in each column, one column a label; .*one_hot\(labels\).amax\(1\), for counts"
    )
    numbers = torch.tensor([[0, 1], [1, 17], [17, 17]])
    for labels in (numbers, numbers.to(torch.uint8), numbers.to(torch.uint16)):
        check_refused(r"Miner\(labels='17 in row 1'" + hint, relation, labels)
    check_refused(r"Miner\(labels='-1 in row 0'" + hint, relation, torch.full((3, 1), -1))
    check_refused(
        r"expected shape \(3, c\), .*; one label a row is for SameLabel\(\)", relation, numbers[:, 0]
    )
    ref = References(torch.eye(3), numbers)
    with pytest.raises(ValueError, match=r"^Miner\(ref.labels='17 in row 1'" + hint):
        Pairwise("Miner", torch.eye(3), numbers > 0, ref=ref, distance=euclidean, relation=relation)
    columns = torch.nn.functional.one_hot(numbers).amax(1)
    (tile,) = Pairwise("Miner", torch.eye(3), columns, distance=euclidean, relation=relation).tiles()
    assert tile.negative.nonzero().tolist() == [[0, 2], [2, 0]]
    for none in (torch.zeros(0, 2).long(), torch.zeros(0, 0).long()):
        assert not list(Pairwise("Miner", torch.eye(0), none, distance=euclidean, relation=relation).tiles())


def test_thresholds_and_relations_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"Graded\(positive=1.5\): expected a finite number from 0 to 1"):
        Graded(1.5, 0)
    with pytest.raises(ValueError, match=r"Graded\(negative=0.5\): expected less than positive=0.5"):
        Graded(0.5, 0.5)
    with pytest.raises(ValueError, match=r"Graded\(relevance='deph'\).*did you mean 'depth'\?"):
        Graded(1, 0, "deph")
    for wrong in (SameLabel, "same", None):
        with pytest.raises(ValueError, match=r"Miner\(relation=.*\): expected a relation: SameLabel\(\)"):
            as_relation("Miner", wrong)
    assert isinstance(SharedLabel(), Relation)


# Pairs that are neither, tables and functions.


def test_a_relation_is_symmetric_where_it_says_so():
    for name, (relation, _) in RELATIONS.items():
        if promised(relation, "is_symmetric", "sides"):
            labels = relation.check("test", "labels", labels_for(name, 12), 12, "cpu")
            for side in relation.sides(labels, labels):
                assert torch.equal(side, side.T)
    assert not PairTable(TABLE > 0.6).is_symmetric
    assert PairTable(torch.eye(3).bool()).is_symmetric

    class OneWay(SameLabel):
        def sides(self, rows, columns):
            return rows[:, None] == columns, rows[:, None] < columns

    assert not Ignore("same", relation=OneWay()).is_symmetric


def test_groups_are_a_case_of_ignored_positives():
    labels = labels_for("cross group", 30)
    for ours, groups in zip(
        Ignore(positives="same").sides(labels, labels), CrossGroup().sides(labels, labels), strict=True
    ):
        assert torch.equal(ours, groups)
    assert torch.equal(Ignore(positives="same").key(labels), labels[:, 0])
    assert Ignore("same").key(labels) is None  # rows of unequal keys would be negatives


def test_a_function_gets_all_columns_but_the_number_to_ignore_by():
    seen = []

    def sides(rows, columns):
        seen.append(rows.shape[1:])
        same = rows[:, None, ..., 0] == columns[None, ..., 0] if rows.ndim > 1 else rows[:, None] == columns
        return same, ~same

    relation = Ignore("same", relation=PairFunction(sides))
    for columns, expected in ((2, ()), (3, (2,))):
        labels = relation.check("test", "labels", torch.zeros(3, columns).long(), 3, "cpu")
        relation.sides(labels, labels)
        assert seen.pop() == expected


def test_labels_of_ignored_pairs_are_refused_with_a_sentence():
    check_refused(
        r"labels='shape \(3,\)'\): expected shape \(3, c\), labels and the number", Ignore("same"), Y
    )
    check_refused(r"shape \(3, 1\)'\): expected shape \(3, c \+ 1\), labels and", Ignore("same"), Y[:, None])
    three = torch.stack([Y, Y, Y], dim=1)
    check_refused("expected shape .*a relation that takes several labels a row", Ignore("same"), three)
    check_refused("expected row numbers of the table, from 0 to 1", PairTable(torch.eye(2).bool()), Y)
    for sides, said in (
        ((ALL, ALL), "one whose sides exclude each other"),
        ((ALL, ALL[:2]), r"two bool tensors of shape \(3, 3\)"),
        ((ALL, ALL.int()), "expected one that gives two bool tensors"),
        (None, "two bool tensors of shape"),
    ):
        relation = PairFunction(lambda a, b, sides=sides: sides)
        with unchecked(), pytest.raises(ValueError, match=said):
            BatchAll(relation=relation)(torch.eye(3), Y)


Y, ALL = torch.arange(3), torch.ones(3, 3).bool()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Ignore(),
            "Ignore(negatives=None): expected which negatives or positives are neither; as nega",
        ),
        (lambda: Ignore("all"), "Ignore(negatives='all'): expected one of 'same', 'other'"),
        (lambda: Ignore("same", relation=3), "Ignore(relation=3): expected a relation"),
        (
            lambda: PairTable(ALL[:2]),
            "PairTable(positive='torch.bool (2, 3)'): expected a square tensor",
        ),
        (lambda: PairTable(ALL.int()), "PairTable(positive='torch.int32 (3, 3)'): expected a square tensor"),
        (lambda: PairTable(ALL, ALL[:2, :2]), "(2, 2)'): expected bools of the shape of positive"),
        (
            lambda: PairTable(ALL, ALL),
            "PairTable(negative='pair (0, 0)'): expected no pair that is",
        ),
        (lambda: PairFunction(3), "PairFunction(function=3): expected a function of two label tensors"),
    ],
)
def test_what_is_no_relation_is_refused(make, said):
    with unchecked(), pytest.raises(ValueError, match=re.escape(said)):
        make()
