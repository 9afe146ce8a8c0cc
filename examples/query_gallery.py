"""Evaluation as in person re-identification: queries against a gallery, without the query's own camera.

A query's own camera sees the same person in the same light, so the published protocol leaves those images
out. Persons, cameras and embeddings are made up here: the camera is a large part of an embedding. With the
camera left in, the figures are far too good.

    python examples/query_gallery.py

prints

    own camera left in:  Recall@1 1.000
    own camera left out: Recall@1 0.275
    Recall@1     0.275 [0.175, 0.381]
    Recall@5     0.600 [0.475, 0.725]
    R-precision  0.260 [0.203, 0.322]
    MAP@R        0.155 [0.112, 0.205]
"""

import numpy as np
import torch

import tercet

# %% A table of images: who, which camera, query or gallery.
rng = np.random.default_rng(0)
PERSONS, CAMERAS = 40, 4
person = np.repeat(np.arange(PERSONS), 4 * CAMERAS)
camera = np.tile(np.repeat(np.arange(CAMERAS), 4), PERSONS)
is_query = np.arange(len(person)) % 8 == 0

# %% Embeddings: the person, the camera, the person in that camera, and noise.
persons, cameras = rng.normal(size=(PERSONS, 16)), rng.normal(size=(CAMERAS, 16))
there = rng.normal(size=(PERSONS * CAMERAS, 16))[person * CAMERAS + camera]  # a person in a camera's light
x = persons[person] + 0.7 * cameras[camera] + 0.7 * there + 0.5 * rng.normal(size=(len(person), 16))
x = torch.nn.functional.normalize(torch.from_numpy(x).float())
labels, groups = torch.from_numpy(person), torch.from_numpy(camera)

# %% Queries are rows, the gallery is `ref`; `ids` are not needed, since no image is in both.
gallery = tercet.References(x[~is_query], labels[~is_query])
options = {"ref": gallery, "groups": (groups[is_query], groups[~is_query])}
queries = x[is_query], labels[is_query]
left_in = tercet.evaluate(*queries, k=1, ref=gallery)
left_out = tercet.evaluate(*queries, k=(1, 5), **options)
print(f"own camera left in:  Recall@1 {float(left_in['Recall@1']):.3f}")
print(f"own camera left out: Recall@1 {float(left_out['Recall@1']):.3f}")
print("\n".join(str(left_out).splitlines()[:4]))
