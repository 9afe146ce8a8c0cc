from dataclasses import fields

import torch

from tercet.pairwise.budget import Budget, accelerator, budget, override

CPU = torch.device("cpu")


def test_a_size_is_overridden_in_a_block_and_restored_after_it():
    before = budget(CPU)
    with override(tile_bytes=1):
        with override(argmin_columns=2):
            assert (budget(CPU).tile_bytes, budget(CPU).argmin_columns) == (1, 2)
            assert budget(CPU).block_bytes == before.block_bytes
        assert (budget(CPU).tile_bytes, budget(CPU).argmin_columns) == (1, before.argmin_columns)
    assert budget(CPU) is before


def test_a_device_met_in_an_overridden_block_has_the_other_sizes_there_alone():
    other = torch.device("mps")  # of which torch tells no free memory
    with override(tile_bytes=1):
        assert budget(other).tile_bytes == 1
    assert budget(other) == accelerator(0)


def test_an_accelerator_has_tiles_by_its_free_memory_and_no_numpy():
    assert accelerator(0).tile_bytes == 256 * 2**20
    assert accelerator(128 * 2**30).tile_bytes == 2 * 2**30
    assert accelerator(0).numpy_numbers == 0


def test_every_size_is_a_whole_number_of_at_least_0():
    for sizes in (budget(CPU), accelerator(2**36)):
        assert all(type(getattr(sizes, field.name)) is int for field in fields(Budget))
        assert min(vars(sizes).values()) >= 0
