"""Data sets: TFDS builders without TensorFlow, and their batches on the devices.

`open_dataset` of `mcn_jax.data.dataset` prepares and opens a data set, `make_source` of
`mcn_jax.data.sources` gives its batches: from splits that live on the devices as uint8, or streamed
by worker processes. What can be done inside the compiled step is done there
(`mcn_jax.data.augment`).
"""
