"""Root-mean-square norm of rows, fused with the sum before it, the gate and the sum after it."""
