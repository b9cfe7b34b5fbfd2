import functools

import numpy as np
import pytest

from mcn_jax import parallel
from mcn_jax.data.sources import eval_batches
from mcn_jax.evaluate import evaluate
from mcn_jax.steps import eval_step
from small_runs import digits_config, random_split, step_arguments


@pytest.mark.parametrize("num_examples", [360, 10000, 26032])
@pytest.mark.parametrize("batch_size", [128, 333, 1000])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_every_example_is_in_exactly_one_batch(num_examples, batch_size, num_devices):
    seen = []
    lengths = set()
    for batch in eval_batches(num_examples, batch_size, num_devices):
        seen.append(batch.indices[batch.mask])
        lengths.add(len(batch.indices))
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(num_examples))
    [length] = lengths
    assert length % num_devices == 0


def test_the_batch_size_does_not_change_the_result():
    state, arguments = step_arguments(digits_config(), binarized=True)
    split = random_split(examples=61)
    step = parallel.parallel(
        functools.partial(
            eval_step,
            model=arguments["model"],
            settings=arguments["settings"],
            axis_name=parallel.AXIS,
        ),
        donate_state=False,
    )
    state, split = parallel.replicate(state), parallel.replicate(split)
    devices = len(parallel.local_devices())
    results = []
    for size in (7, 16, 61, 500):
        batches = ((split, parallel.shard(batch)) for batch in eval_batches(61, size, devices))
        results.append(evaluate(step, state, batches))
    assert {result["test_examples"] for result in results} == {61}
    assert len({result["test_accuracy"] for result in results}) == 1
    for result in results:
        np.testing.assert_allclose(result["test_loss"], results[0]["test_loss"], rtol=1e-5)
