"""`python -m decodetax.harness` is the command `decodetax`."""

from .core.rank_process import end_at_ctrl_c

if __name__ == "__main__":
    end_at_ctrl_c()
    from .cli import main

    main()
