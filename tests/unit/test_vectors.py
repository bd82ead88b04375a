import numpy as np
import pytest

from laion_assets.vectors import as_float32

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize("width", [1, 8, 512])
def test_every_float16_keeps_its_value(width):
    vectors = EVERY.reshape(-1, width)
    found = as_float32(vectors)
    assert found.dtype == np.float32
    # Bits are compared, since NaN equals nothing and -0.0 equals 0.0.
    assert np.array_equal(found.view(np.uint32), vectors.astype(np.float32).view(np.uint32))


def test_numbers_without_infinities_beside_them_do_too():
    finite = EVERY[np.isfinite(EVERY)].reshape(-1, 1024)
    found = as_float32(finite)
    assert np.array_equal(found.view(np.uint32), finite.astype(np.float32).view(np.uint32))
    assert found.max() == 65_504
    assert np.abs(found[found != 0]).min() == 2.0**-24


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1), (257, 3)])
def test_shapes_are_kept(shape):
    vectors = np.ones(shape, np.float16)
    assert np.array_equal(as_float32(vectors), np.ones(shape, np.float32))


def test_rows_of_a_larger_array_are_taken_as_they_are():
    vectors = np.random.default_rng(1).standard_normal((600, 16)).astype(np.float16)
    for part in (vectors[::2], vectors[5:300], vectors[:, :7]):
        assert np.array_equal(as_float32(part), part.astype(np.float32))
