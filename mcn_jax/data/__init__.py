"""Data sets: TFDS builders without TensorFlow, and their batches on the devices.

`open_dataset` of `mcn_jax.data.dataset` prepares and opens a data set. `make_source` of
`mcn_jax.data.sources` returns its batches, either from splits that stay on the devices as uint8, or
streamed by worker processes. `mcn_jax.data.augment` has the augmentations that run inside the
compiled step.
"""
