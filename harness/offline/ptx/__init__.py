"""Executes compiled PTX on a CPU: numpy over all lanes of a CTA, strict about memory and synchronisation.

`launch.executed` is the entry. A launch's arguments become parameters (`arguments`). A kernel passes through
`inlining` and `parser` (instructions, basic blocks), `translator` with the tables of `translate_*` (Python
source of each block) and `cta` (divergence, barriers). That calls the state of one concern each:
`global_memory` with `cta_order`, `shared_memory`, `local_memory`, `async_copies`, `mbarriers`, `tma` with
`tensor_maps`, `matrix_memory`, `mma`, `wgmma`, `tensor_memory` and `tensor_cores` (tcgen05), `warps`.
What a kernel does wrong becomes a `violations.Violation`. `counters` counts while it runs; `figures` sums
it by class, tensor and loop.

Not modelled: what ptxas decides (registers, instruction order, spills), time, races between lanes of one
warp, rounding within tensor cores and approximate functions. PTX that is not known raises
`unsupported.UnsupportedPtxError`; none is skipped.
"""
