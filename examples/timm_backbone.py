"""A backbone of timm with a linear embedding on top, trained on class folders.

Needs `pip install timm torchvision`. Weights are random here, since nothing is downloaded; pass
`pretrained=True` for those of ImageNet. Without a folder it takes the digits of scikit-learn.

    python examples/timm_backbone.py [PHOTOS]

prints

    resnet10t: 512 features, 16 numbers an embedding
    step 0: loss 0.451, 100% of the triplets active
    step 20: loss 0.217, 100% of the triplets active
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import albumentations as A
import timm
import torch
from quickstart import write_digits
from torch.utils.data import DataLoader

import tercet

# %% The images, augmented and normalised as the backbone expects them.
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "digits"
if len(sys.argv) == 1:
    write_digits(folder)
torch.manual_seed(0)
backbone = timm.create_model("resnet10t", pretrained=False, num_classes=0)
expects = backbone.pretrained_cfg
transform = A.Compose(
    [
        A.Resize(64, 64),
        A.Affine(rotate=(-10, 10), p=1),
        A.Normalize(mean=expects["mean"], std=expects["std"]),
    ]
)
catalog = tercet.scan_folder(folder)
dataset = tercet.ImageDataset(catalog, transform)
sampler = tercet.PKSampler(catalog, p=5, k=4, seed=0)

# %% The network: `EmbeddingHead` is the linear layer, to unit length.
model = torch.nn.Sequential(backbone, tercet.EmbeddingHead(backbone.num_features, 16))
print(f"resnet10t: {backbone.num_features} features, 16 numbers an embedding")

# %% The loop.
miner, head = tercet.BatchHard(), tercet.TripletMargin(margin=0.2)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step, (images, labels) in enumerate(DataLoader(dataset, batch_sampler=sampler)):
    embeddings = model(images)
    mined = miner(embeddings, labels)
    loss = head(embeddings, labels, mined)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        active = tercet.describe(embeddings, labels, mined, margin=0.2)["active"]
        print(f"step {step}: loss {loss.item():.3f}, {active:.0%} of the triplets active")
    if step == 20:
        break
