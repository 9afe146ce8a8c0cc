"""Odd values for arguments, by kind: nonsense, which a call must refuse, and odd ones, which it may take.

A value is written as the expression that makes it: made anew for each call, and shown as it is in a report.
N = 8 is how many rows the valid arguments have.
"""

from __future__ import annotations

import math
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import tercet

N = 8


def pool(text: str) -> tuple[str, ...]:
    """Expressions of a text, between semicolons."""
    return tuple(" ".join(text.split()).split("; "))


class Kind(NamedTuple):
    """What an argument may be given: `nonsense` must be refused, `odd` may be."""

    nonsense: tuple[str, ...]
    odd: tuple[str, ...] = ()


def nested(depth: int) -> list:
    """A list in a list in a list."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def quantized(*shape: int) -> torch.Tensor:
    """A tensor of 8-bit codes with a scale: an old kind that few operations know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = torch._empty_affine_quantized(shape, scale=0.1, zero_point=0, dtype=torch.quint8)
        return codes.copy_(torch.ones(shape))


class Unreadable:
    """An object whose every use fails: no `repr`, no length, no array."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __array__(self, *options: Any, **more: Any) -> np.ndarray:
        raise RuntimeError("no array")


SPACE = {
    "math": math,
    "np": np,
    "torch": torch,
    "tercet": tercet,
    "Decimal": Decimal,
    "Fraction": Fraction,
    "Path": Path,
    "N": N,
    "nested": nested,
    "quantized": quantized,
    "Unreadable": Unreadable,
}

_NO_NUMBER = pool(
    r"""
    True; np.True_; torch.tensor(True); '3'; b'3'; ''; [3]; []; {}; 1j; object(); math.nan;
    np.array([1, 2]); torch.ones(2); nested(2000); Unreadable(); math.inf; np.datetime64('2026-01-01');
    np.array('a'); lambda: 3; slice(3); np.ma.masked
    """
)
_BROKEN = pool(
    r"""
    None; object(); Unreadable(); 2.5; 'abc'; b'abc'; lambda: 3; nested(2000); math.nan;
    np.datetime64('2026-01-01'); slice(3); (i for i in range(3)); {'a': 1}
    """
)
_NO_LABELS = pool(
    r"""
    [0.5] * N; [math.nan] * N; ['a', 1] * (N // 2); [None] * N; [[0, 1]] * N; [[0], [0, 1]];
    torch.full((N,), 0.5); np.full(N, 0.5); np.full(N, math.nan); torch.zeros(N) * 1j; torch.tensor(0);
    np.array(0); np.array([object()] * N); np.full(N, None); 3
    """
)
_ODD_LABELS = pool(
    r"""
    [2**63] * N; [2**70] * N; [10**5000] * N; np.full(N, 2**64 - 1, np.uint64); range(N);
    torch.arange(N).to_sparse(); torch.arange(N, device='meta'); quantized(N); [True] * N;
    torch.arange(N).to(torch.uint16); torch.arange(N).to(torch.uint64); np.arange(N, dtype='>i4');
    torch.ones(N, requires_grad=True); np.array([0, 1] * (N // 2), dtype=object); ['é\x00'] * N;
    ['\udcff'] * N; [b'a'] * N; np.ma.masked_array(np.arange(N), np.arange(N) == 0); [-1] * N;
    [torch.tensor(0)] * N; [np.int8(0)] * N; torch.arange(N, dtype=torch.int8); {0, 1}; '';
    torch.zeros(0, dtype=torch.int64); []; np.zeros((0, 2), int); torch.zeros(N, 2).long();
    np.zeros(N, 'V8'); np.zeros(N, [('a', int)]); np.zeros(N, 'M8[s]');
    torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]); torch.zeros(N, 0).long()
    """
)
_OTHER_LENGTH = pool(
    r"""
    torch.zeros(N + 1).long(); torch.zeros(N - 1).long(); torch.zeros(1).long()
    """
)
_NO_POINTS = pool(
    r"""
    torch.full((N, 4), math.nan); torch.full((N, 4), math.inf); torch.ones(N); torch.tensor(1.0);
    torch.ones(N, 4, 1); torch.ones(N, 4) * 1j; [['a'] * 4] * N; np.full((N, 4), None); 3; True;
    np.array([['a'] * 4] * N); [[1.0], [1.0, 2.0]]; np.full((N, 4), math.nan)
    """
)
_ODD_POINTS = pool(
    r"""
    torch.ones(N, 4).long(); torch.ones(N, 4).bool(); torch.ones(N, 4).to_sparse(); quantized(N, 4);
    torch.ones(N, 4, device='meta'); torch.ones(N, 4).half(); torch.ones(N, 4).bfloat16();
    torch.ones(N, 4).double(); torch.ones(N, 4).to(torch.float8_e4m3fn); torch.ones(N, 0);
    torch.ones(0, 4); torch.ones(N, 4, requires_grad=True); np.ones((N, 4)); np.ones((N, 4), '>f4');
    np.ones((N, 4), np.longdouble); [[1.0] * 4] * N; np.ones((N, 4), object); torch.full((N, 4), 1e30);
    torch.ones(N, 4).to_sparse_csr(); np.ones((N, 4), 'M8[s]'); torch.ones(N, 4).t().contiguous().t();
    torch.ones(1, 4).expand(N, 4); torch.ones(N, 4).conj(); torch.nn.Parameter(torch.ones(N, 4));
    torch.full((N, 4), 1e-40); np.ones((N, 4), np.float16);
    torch.nested.nested_tensor([torch.ones(4)] * N); torch.ones(N, 4).to(torch.uint16); []
    """
)

KINDS = {
    "count": Kind(
        (
            *_NO_NUMBER,
            *pool(
                r"""
    2.5; np.float64(2.5); torch.tensor(2.5); -1; -(2**70); Fraction(5, 2)
    """
            ),
        ),
        pool(
            r"""
    0; 1; 2**31; 2**62; 2**63; 2**64; 10**30; 10**5000; np.int8(3); np.uint64(3); torch.tensor(3);
    np.array(3); 3.0; torch.tensor(3, device='meta'); torch.ones(1).long()
    """
        ),
    ),
    "real": Kind(
        (
            *_NO_NUMBER,
            *pool(
                r"""
    -math.inf; 10**400; np.float32('nan'); torch.tensor(math.nan); '0.5'
    """
            ),
        ),
        pool(
            r"""
    -1e30; 1e30; 0; -1; 1e-300; 2**63; np.float16(0.5); torch.tensor(0.5); np.array(0.5);
    Decimal('0.5'); Decimal('nan'); Decimal('snan'); Fraction(1, 2); torch.tensor(0.5, device='meta');
    torch.tensor(0.5, requires_grad=True); -0.0; 5e-324; quantized(1)
    """
        ),
    ),
    "loss": Kind(
        pool(
            r"""
    'abc'; b'3'; True; torch.tensor(True); torch.ones(2); torch.tensor(1j); []; [3]; {}; 1j; object();
    Unreadable(); nested(2000); lambda: 3; np.array([1, 2]); torch.ones(0)
    """
        ),
        pool(
            r"""
    math.nan; math.inf; 3; torch.ones(1, 1); torch.tensor(3); np.array(0.5); np.float16(0.5); 10**5000;
    torch.tensor(math.nan); torch.tensor(0.5, device='meta'); torch.ones(1).to_sparse(); quantized(1);
    torch.nested.nested_tensor([torch.ones(1)]); Decimal('snan')
    """
        ),
    ),
    "flag": Kind(
        pool(
            r"""
    'no'; 'False'; 0; 1; 2.5; []; object(); math.nan; np.array([True, False]); b''; Unreadable();
    torch.ones(2).bool(); {}; torch.tensor(1)
    """
        ),
        pool(
            r"""
    np.True_; torch.tensor(True); torch.tensor(True, device='meta')
    """
        ),
    ),
    "dear flag": Kind(
        pool("'no'; 0; 1; 2.5; []; object(); math.nan; b''; Unreadable(); torch.ones(2).bool()")
    ),
    "choice": Kind(
        pool(
            r"""
    'nosuch'; ''; 1; True; b'mean'; ['mean']; object(); 2.5; math.nan; Unreadable(); nested(2000);
    'a' * 100_000; np.array('mean'); '\udcff\x1b[2J'; {}; torch.ones(2)
    """
        )
    ),
    "tensor labels": Kind((*_BROKEN, *_NO_LABELS, *_OTHER_LENGTH), _ODD_LABELS),
    "labels": Kind((*_BROKEN, *_NO_LABELS), (*_ODD_LABELS, *_OTHER_LENGTH)),
    "labels of rows": Kind((*_BROKEN, *_NO_LABELS, *_OTHER_LENGTH), _ODD_LABELS),
    "class numbers": Kind(
        (*_BROKEN, *_NO_LABELS, *_OTHER_LENGTH, *pool(r"""torch.full((N,), 99); torch.full((N,), -1)""")),
        _ODD_LABELS,
    ),
    "groups": Kind((*_BROKEN[1:], *_NO_LABELS, *_OTHER_LENGTH), _ODD_LABELS),
    "one or several labels": Kind((*_BROKEN, *_NO_LABELS[6:], *_OTHER_LENGTH), _ODD_LABELS),
    "several labels": Kind(
        (
            *_BROKEN,
            *_NO_LABELS,
            *_OTHER_LENGTH,
            *pool(r"""torch.zeros(N + 1, 2).long(); torch.full((N, 2), 0.5)"""),
        ),
        _ODD_LABELS,
    ),
    "embeddings": Kind((*_BROKEN, *_NO_POINTS, *pool(r"""torch.ones(N + 1, 4)""")), _ODD_POINTS),
    "points": Kind((*_BROKEN, *_NO_POINTS), (*_ODD_POINTS, *pool(r"""torch.ones(N + 1, 4)"""))),
    "ids": Kind((*_BROKEN[1:], *_NO_LABELS[6:], *_OTHER_LENGTH, *pool(r"""['a'] * N""")), _ODD_LABELS),
    "ref": Kind(
        (
            *_BROKEN[1:],
            *pool(
                r"""
    3; torch.ones(N, 4); tercet.References; (torch.ones(N, 4), torch.arange(N));
    tercet.References(None, None); tercet.References(torch.ones(N, 4), None);
    tercet.References(3, 4, 5); tercet.References(torch.ones(N, 5), torch.arange(N));
    tercet.References(torch.ones(N, 4), torch.arange(3)); tercet.References('abc', 'abc');
    tercet.References(torch.ones(4), torch.arange(4));
    tercet.References(torch.full((N, 4), math.nan), torch.arange(N))
    """
            ),
        ),
        pool(
            r"""
    tercet.References(torch.ones(0, 4), torch.zeros(0).long());
    tercet.References(np.ones((N, 4)), np.arange(N));
    tercet.References(torch.ones(N, 4), torch.arange(N), torch.arange(N));
    tercet.References(torch.ones(N, 4, device='meta'), torch.arange(N));
    tercet.References(torch.ones(N, 4).to_sparse(), torch.arange(N));
    tercet.References(torch.ones(N, 4).long(), torch.arange(N));
    tercet.References(quantized(N, 4), torch.arange(N));
    tercet.References(torch.ones(N, 4), ['a'] * N); tercet.References([[1.0] * 4] * N, [0] * N);
    tercet.References(torch.ones(N, 4), torch.arange(N).to_sparse());
    tercet.References(torch.ones(N, 4), torch.arange(N), 'abc')
    """
        ),
    ),
    "columns": Kind(
        (
            *_BROKEN[1:],
            *pool(
                r"""
    3; torch.ones(N, 4); tercet.References; (torch.ones(N, 4), None); tercet.References(None, None);
    tercet.References(3, 4, 5); tercet.References(torch.ones(N, 5), None); tercet.References('abc', 'abc');
    tercet.References(torch.ones(4), None); tercet.References(torch.full((N, 4), math.nan), None)
    """
            ),
        ),
        pool(
            r"""
    tercet.References(torch.ones(N, 4), None); tercet.References(torch.ones(N, 4), 'abc', 'abc');
    tercet.References(quantized(N, 4), None); tercet.References(torch.ones(N, 4).to_sparse(), None);
    tercet.References(torch.ones(N, 4, device='meta'), None); tercet.References(np.ones((N, 4)), None)
    """
        ),
    ),
    "mined": Kind(
        (
            *_BROKEN[1:],
            *pool(
                r"""
    3; (1, 2, 3); ('a', 'b', 'c'); (None,) * 3; [torch.tensor([0])] * 2; [torch.tensor([99])] * 3;
    [torch.tensor([-1])] * 3; [torch.tensor([0.5])] * 3; [torch.tensor(0)] * 3;
    [torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([2])]; [torch.tensor([2**62])] * 3;
    [torch.ones(2).bool()] * 3; [[0.5]] * 3; [['a']] * 3; [[2**70]] * 3; torch.tensor([0, 1, 2])
    """
            ),
        ),
        pool(
            r"""
    [torch.zeros(0)] * 3; [torch.tensor([0]).to_sparse()] * 3; [torch.tensor([0], device='meta')] * 3;
    [quantized(1)] * 3; [[0], [1], [2]]; [np.array([0], 'u1')] * 3; [np.array([0], '>i4')] * 3;
    [torch.tensor([0])] * 4; [np.array([0], object)] * 3; [np.array([2**63], 'u8')] * 3;
    [range(1)] * 3; [torch.tensor([0], dtype=torch.uint64)] * 3;
    [torch.tensor([0], dtype=torch.int8)] * 3
    """
        ),
    ),
    "distance": Kind(
        (
            *_BROKEN,
            *pool(
                r"""
    'nosuch'; 3; True; ['cosine']; torch.ones(4, 4); torch.dist; int
    """
            ),
        ),
        pool(r"""'cosine'"""),
    ),
    "relation": Kind((*_BROKEN, *pool(r"""3; 'SameLabel'; tercet.SameLabel; True; torch.eye(N)"""))),
    "index": Kind(
        pool(
            r"""
    2.5; 'a'; None; [0.5]; math.nan; [[0]]; ['a']; object(); Unreadable(); 2**70; -(2**70); 99_999;
    -99_999; [99_999]; [2**70]; [None]; 1j; torch.tensor([0.5]); nested(2000); {}; slice('a', 3);
    slice(0.5); np.array(['a']); True; [True]; [[0], [0, 1]]; np.uint64(2**63)
    """
        ),
        pool(
            r"""
    -1; 0; slice(None, None, -1); []; np.array([0], 'u8'); torch.tensor([0]); torch.tensor(0); ...;
    torch.tensor([0], device='meta'); torch.tensor([0]).to_sparse(); slice(2**70); (0, 1); range(2);
    np.array([0], object); slice(None, None, 0); quantized(1); np.array([2**63], 'u8'); ()
    """
        ),
    ),
    "row": Kind(
        pool(
            r"""
    2.5; 'a'; None; math.nan; [0]; object(); Unreadable(); 2**70; -(2**70); 99_999; 1j; [0.5]; {};
    nested(2000); np.datetime64('2026-01-01')
    """
        ),
        pool(
            r"""
    -1; 0; np.int8(0); torch.tensor(0); True; torch.tensor(0, device='meta')
    """
        ),
    ),
    "source": Kind(
        pool(
            r"""
    3; 2.5; None; object(); Unreadable(); math.nan; {}; 'nosuch'; 'nosuch.csv'; 'nosuch.parquet'; '\0';
    'a\0b.csv'; 'a' * 5000; nested(2000); 'é\udcff'; 'nosuch.txt'; 'nosuch.arrow'
    """
        ),
        pool(
            r"""
    ''; b'abc'; True; '/dev/null'; '.'; Path('.'); 'odd.csv'; 'odd.parquet'; 'odd.txt'; 'odd.arrow';
    'odd.jsonl'; 'odd.tar'; 'odd.npy'; 'empty'; ['nosuch']; []; [None]; [3]; 'file://x.csv'
    """
        ),
    ),
    "target": Kind(
        pool(
            r"""
    3; 2.5; None; object(); Unreadable(); math.nan; {}; '\0'; 'a\0b.csv'; nested(2000); [];
    'no/such/folder/t.parquet'
    """
        ),
        pool(
            r"""
    ''; b'abc'; True; 'a' * 5000 + '.csv'; '/dev/null'; '.'; '/proc/x.csv'; 't.nosuch'; 'é\udcff.csv'
    """
        ),
    ),
    "folder or None": Kind(
        pool(
            r"""
    3; 2.5; object(); Unreadable(); math.nan; {}; []; nested(2000)
    """
        ),
        pool(r"""''; '\0'; 'nosuch'; b'abc'; True; Path('.')"""),
    ),
    "callable or None": Kind(
        pool(
            r"""
    3; 'abc'; 2.5; object(); []; True; math.nan; Unreadable(); torch.ones(2)
    """
        )
    ),
    "callable": Kind(
        pool(
            r"""
    3; 'abc'; 2.5; object(); []; True; None; Unreadable(); torch.ones(2)
    """
        )
    ),
    "text": Kind(
        pool(
            r"""
    3; 2.5; object(); Unreadable(); []; b'abc'; True; math.nan; {}
    """
        ),
        pool(r"""''; '\0'; '\udcff'; 'nosuch'"""),
    ),
    "texts": Kind(
        pool(
            r"""
    3; 2.5; object(); Unreadable(); [3]; [None]; True; math.nan; ['nosuch']
    """
        ),
        pool(r"""(); 'abc'"""),
    ),
    "state": Kind(
        (
            *_BROKEN,
            *pool(
                r"""
    3; {}; []; {'epoch': 0}; {'epoch': 'a', 'step': 0, 'settings': {}};
    {'epoch': 0, 'step': 0, 'settings': None}; {'epoch': -1, 'step': 0, 'settings': {}};
    {'epoch': 0, 'step': math.nan, 'settings': {}};
    {'epoch': 0, 'step': 0, 'settings': {'seed': Unreadable()}}
    """
            ),
        )
    ),
    "batches": Kind(
        (*_BROKEN[:6], *pool(r"""3; True; torch.ones(2); ''""")),
        pool(r"""[]; [3]; [(1, 2, 3, 4)]; [(torch.ones(2), None)]"""),
    ),
    "gathered": Kind(
        pool(
            r"""
    3; 'a'; object(); True; torch.ones(2); tercet.References; lambda *given: 3
    """
        )
    ),
    "size": Kind(
        pool(
            r"""
    True; '3'; b'3'; []; {}; 2.5; None; object(); Unreadable(); math.nan; torch.tensor(2.5); -1;
    np.array(2.5); 1j; slice(3)
    """
        ),
        pool(
            r"""
    3; [3]; torch.ones(2); np.ones(2); 2**62; 2**63; 10**5000; torch.tensor(3, device='meta');
    range(3)
    """
        ),
    ),
    "epoch length": Kind(
        pool(
            r"""
    'nosuch'; ''; 0; -1; True; 2.5; math.nan; None; b'every_image'; [3]; object(); Unreadable(); '3';
    2**63; torch.tensor(True)
    """
        ),
        pool(r"""1; 3; 2**40; np.int8(2)"""),
    ),
    "counts": Kind(
        pool(
            r"""
    True; 2.5; [2.5]; []; 'a'; [0]; None; object(); Unreadable(); [[1]]; torch.tensor(2.5); [None];
    math.nan; torch.tensor(True)
    """
        ),
        pool(
            r"""
    [1, 2]; np.array([1, 2]); torch.tensor([1, 2]); range(1, 3); np.int8(3); 2**62; [10**30];
    torch.tensor(3, device='meta')
    """
        ),
    ),
    "mapping": Kind(
        _BROKEN[1:-1],
        pool(
            r"""
    {}; {'a': object()}; {'a': math.nan}; {3: 4}; {'a': nested(2000)}
    """
        ),
    ),
    "floats": Kind(
        (
            *_BROKEN,
            *pool("3; torch.tensor(1.0); [[1.0] * 4] * N; np.ones((N, 4)); torch.ones(N, 5); torch.ones(4)"),
        ),
        _ODD_POINTS,
    ),
    "weights": Kind(
        (
            *_BROKEN,
            *_OTHER_LENGTH,
            *pool(
                r"""
    [1.0] * N; torch.full((N,), -1.0); torch.full((N,), math.nan); torch.full((N,), math.inf);
    torch.ones(N, 1); torch.ones(N) * 1j; torch.tensor(1.0); torch.ones(N).to_sparse(); quantized(N);
    torch.full((N,), 1e300, dtype=torch.float64)
    """
            ),
        ),
        pool(r"""np.ones(N); torch.ones(N).bool(); torch.arange(N); torch.ones(N).half(); torch.zeros(N)"""),
    ),
    "class weights": Kind(
        (
            *_BROKEN,
            *pool(
                r"""
    [1.0] * 5; [1, 1, 1, -1]; [1, 1, 1, math.nan]; ['a'] * 4; [None] * 4; torch.ones(4, 1);
    torch.ones(4) * 1j; torch.ones(4).to_sparse(); quantized(4); 1.0; [[1.0]] * 4; np.full(4, None);
    [1, 1, 1, math.inf]; [10**400] * 4
    """
            ),
        ),
        pool(
            r"""[1, 2, 3, 4]; np.ones(4); torch.ones(4).bool(); torch.ones(4, requires_grad=True); (0,) * 4"""
        ),
    ),
    "sample": Kind(
        (
            *_BROKEN[1:3],
            *_BROKEN[4:],
            *pool("2.5; 0; -1; 0.0; -0.5; 1.5; True; math.inf; [1]; torch.ones(2); '1'"),
        ),
        pool("0.5; 1.0; 1; 3; 10**9; np.float32(0.25); np.int64(2); Fraction(1, 2); torch.tensor(0.5)"),
    ),
    "new proxies": Kind(
        (*_BROKEN, *_NO_POINTS, *pool(r"""torch.ones(2, 4); torch.ones(0, 4); torch.ones(1, 3)""")),
        pool(r"""torch.ones(1, 4); torch.ones(10, 4); torch.zeros(1, 4)"""),
    ),
    "range": Kind(
        (*_BROKEN, *pool(r"""3; (1,); (1, 2, 3); (2, 1); ('a', 1); (None, math.nan); '12'; [1j, 2]""")),
        pool(r"""(0.1, 1.0); [None, 2]; (0.5, None); (None, None)"""),
    ),
    "anything": Kind((), (*_BROKEN, *pool(r"""3; True; []; torch.ones(2); ''"""))),
    "object": Kind((*_BROKEN, *pool(r"""3; True; []; torch.ones(2); ''; int"""))),
}
"""For an argument that may be None, `None` is taken out of the nonsense; for another it is put in."""
