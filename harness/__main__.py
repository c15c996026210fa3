"""`python -m decodetax.harness` is the command `decodetax`."""

from .cli import main

if __name__ == "__main__":
    main()
