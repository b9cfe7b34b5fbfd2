import jax
import numpy as np

from mcn_jax.seeds import Purpose, epoch_order, example_keys, run_key


def test_orders_are_permutations_that_differ_by_seed_and_epoch():
    orders = [epoch_order(seed, epoch, 100) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert len({order.tobytes() for order in orders}) == 4
    np.testing.assert_array_equal(orders[1], epoch_order(0, 1, 100))


def test_keys_depend_on_seed_purpose_step_and_position():
    def words(*arguments):
        return jax.random.key_data(example_keys(*arguments)).tolist()

    base = words(0, Purpose.DROPOUT, 3, np.array([5, 6]))
    assert words(0, Purpose.DROPOUT, 3, np.array([6]))[0] == base[1]
    others = [
        words(1, Purpose.DROPOUT, 3, np.array([5]))[0],
        words(0, Purpose.CROP, 3, np.array([5]))[0],
        words(0, Purpose.DROPOUT, 4, np.array([5]))[0],
        base[0],
        base[1],
    ]
    assert len({tuple(other) for other in others}) == 5
    assert jax.random.key_data(run_key(0, Purpose.PARAMETERS)).shape == (2,)


def test_every_purpose_has_a_stream_of_its_own():
    assert len(set(Purpose.__members__.values())) == len(Purpose.__members__)
