"""Tests packing codes into bits, and unpacking them."""

import math

import hypothesis.extra.numpy as arrays
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcn_jax.ops.packing import bits_per_weight, pack, packed_shape, unpack, unpack_traced

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9)


def test_bits_by_hand():
    # Weight 8 * j + i is bit i of byte j: 1 + 2^3 = 9, and 2^1 of the second byte.
    codes = np.array([1, 0, 0, 1, 0, 0, 0, 0, 0, 1], np.uint8)
    np.testing.assert_array_equal(pack(codes, 2), [[9, 2]])


def test_planes_by_hand():
    # The low bits of 3, 0, 1, 2 are 1, 0, 1, 0. The high bits are 1, 0, 0, 1.
    codes = np.array([[3, 0], [1, 2]], np.uint8)
    np.testing.assert_array_equal(pack(codes, 4), [[0b0101], [0b1001]])


@pytest.mark.parametrize(
    ("num_centers", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (256, 8)]
)
def test_bits_per_weight(num_centers, bits):
    assert bits_per_weight(num_centers) == bits


@pytest.mark.parametrize("num_centers", [0, 1, 257])
def test_number_of_centers_is_checked(num_centers):
    with pytest.raises(ValueError, match=f"num_centers={num_centers} must lie in 2..256"):
        bits_per_weight(num_centers)


@given(data=st.data(), shape=SHAPES, num_centers=st.integers(2, 256))
def test_unpacking_is_the_inverse_of_packing(data, shape, num_centers):
    codes = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, num_centers - 1)))
    packed = pack(codes, num_centers)
    assert packed.shape == packed_shape(shape, num_centers)
    assert packed.shape[1] == math.ceil(codes.size / 8)
    np.testing.assert_array_equal(unpack(packed, shape), codes, strict=True)


@pytest.mark.parametrize("num_centers", [2, 3, 16, 256])
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (16,), (1,)])
def test_unpacking_inside_a_compiled_function_is_the_same(shape, num_centers):
    codes = np.random.default_rng(0).integers(0, num_centers, shape).astype(np.uint8)
    traced = jax.jit(unpack_traced, static_argnums=1)(pack(codes, num_centers), shape)
    np.testing.assert_array_equal(traced, codes)
    assert traced.shape == shape


def test_one_bit_is_numpys():
    codes = np.random.default_rng(0).integers(0, 2, (3, 3, 20, 7), np.uint8)
    packed = np.packbits(codes, bitorder="little")
    np.testing.assert_array_equal(pack(codes, 2), packed[None], strict=True)


def test_a_code_without_a_center_is_refused():
    with pytest.raises(ValueError, match="code 3 is out of range for 3 centers"):
        pack(np.array([0, 3], np.uint8), 3)


@pytest.mark.parametrize("packed_shape", [(1, 2), (1, 4), (9, 3), (3,)])
def test_bits_of_another_number_of_weights_are_refused(packed_shape):
    with pytest.raises(ValueError, match="do not hold 17 weights"):
        unpack(np.zeros(packed_shape, np.uint8), (17,))
