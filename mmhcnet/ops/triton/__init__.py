"""Fused kernels of the operators. Each module is imported on its first use, never before.

All of them are bound by memory bandwidth. Fields are channels last, so that neighbouring threads
read neighbouring channels; other layouts are converted. Arithmetic is in float32 whatever the
dtype of a field. Sums over pixels go through buffers of partial sums, never through atomics: the
same input gives the same bits.
"""
