"""Small matmul shapes and tilings for the models of offline."""

from decodetax.harness.offline.cache_model import MatmulOperands
from decodetax.kernels import DecodeTiling, MatmulTiling


def matmul_shape(rows, out_features, in_features, *, element_bytes=2, weight_bytes=None):
    return MatmulOperands(
        rows=rows,
        out_features=out_features,
        in_features=in_features,
        x_bytes=element_bytes,
        weight_bytes=weight_bytes or element_bytes,
        out_bytes=element_bytes,
    )


def matmul_tiling(block_m, block_n, block_k, *, group_m=8, num_splits=1, **more):
    sizes = {"block_m": block_m, "block_n": block_n, "block_k": block_k, "group_m": group_m}
    return MatmulTiling(**sizes, num_splits=num_splits, num_warps=4, num_stages=2, **more)


def decode_tiling(num_splits=0, *, block_n=64, **more):
    return DecodeTiling(block_g=16, block_n=block_n, num_splits=num_splits, num_warps=4, num_stages=3, **more)


def span(index, size, limit):
    """Rows of block `index` that are inside the matrix."""
    return range(index * size, min(index * size + size, limit))
