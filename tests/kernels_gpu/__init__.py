"""Tests of the GPU's kernels on the CPU, in Triton's interpreter."""
