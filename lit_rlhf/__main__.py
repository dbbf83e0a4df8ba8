"""`python -m lit_rlhf` is the same program as `lit-rlhf`."""

from lit_rlhf.cli import main

if __name__ == "__main__":
    main()
