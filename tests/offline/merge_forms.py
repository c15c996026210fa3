"""Prints what forms of `merge_states` compile to for a GPU, as JSON: python merge_forms.py GPU"""

import json
import re
import sys
from functools import partial

import click
import torch
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.compiler import compile_launches
from decodetax.kernels import merge_states

BF16 = torch.bfloat16
lses = partial(torch.empty, dtype=torch.float32)


def outputs(*size, dtype=BF16):
    return torch.empty(*size, dtype=dtype)


def pair(head_dim):
    states = [outputs(64, 32, head_dim), lses(64, 32)]
    merge_states(*states, *states)


def stack(size=(7, 64, 32, 128), **options):
    merge_states(outputs(*size), lses(size[:-1]), **options)


FORMS = {
    "pair": lambda: pair(128),
    "pair_d72": lambda: pair(72),
    "pair_d512": lambda: pair(512),
    "stack": stack,
    "mask_base_2": lambda: stack(mask=torch.ones(7, 64, 1, dtype=torch.bool), lse_base=2),
    "out_e4m3": lambda: stack(out_dtype=torch.float8_e4m3fn, out_scale=torch.ones(())),
    "parts_second": lambda: merge_states(
        outputs(64, 7, 32, 128).transpose(0, 1), lses(64, 7, 32).transpose(0, 1)
    ),
}


def counts(form, gpu):
    """Launches, spill instructions, and loads of global memory 16 bytes a lane."""
    launches = compile_launches(form, gpu)
    code = "".join(launch.error or launch.kernel.asm["sass"] for launch in launches)
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return {
        "launches": len(launches),
        "spills": spills,
        "wide_loads": len(re.findall(r"\bLDG\.E\S*\.128", code)),
    }


if __name__ == "__main__":
    gpu = find_gpu(sys.argv[1], with_limits=True)
    click.echo(json.dumps({name: counts(form, gpu) for name, form in FORMS.items()}))
