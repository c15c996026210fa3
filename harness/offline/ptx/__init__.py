"""Executes compiled PTX on a CPU: numpy over all lanes of a CTA, strict about memory and synchronisation.

`launch.executed` is the entry. A kernel passes through `parser` (instructions, basic blocks), `translator`
with the tables of `translate_*` (Python source of each block) and `cta` (divergence, barriers), which calls
the state of one concern each: `global_memory`, `shared_memory`, `async_copies`, `mbarriers`,
`tma`, `matrix_memory`, `mma`, `wgmma`, `tensor_memory`, `tensor_cores`, `warps`.
What a kernel does wrong becomes a `violations.Violation`.

`counters` counts while it runs; `figures` sums it by class, tensor and loop.
"""
